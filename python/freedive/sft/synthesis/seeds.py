"""Instructions to begin with: rows of Self-Instruct, Alpaca, TRL, questions with answers, conversations in any form, or a text file with one a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.data.texts import decode_utf8, iter_rows
from freedive.runs import UserError

from ..rows import conversations, trees


@dataclass(frozen=True)
class Seed:
    """`task` is what is asked without the input it is asked of: what others are compared with, as in Self-Instruct, and shown."""

    id: str
    text: str
    task: str


def read_seeds(path: Path) -> list[Seed]:
    """UserError names the line of a row that holds no instruction."""
    if not path.exists():
        raise UserError(
            f"{path} does not exist", hint="a file of instructions, one a line, or JSONL with 'instruction', 'prompt', 'question' or 'messages'"
        )
    found: list[Seed] = []
    if path.suffix in (".txt", ".md"):
        try:
            lines = decode_utf8(path.read_bytes(), path).split("\n")
        except OSError as error:
            raise UserError(f"{path} could not be read: {error.strerror}") from None
        found = [Seed(f"{path.name}:{i}", line.strip(), line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    else:
        for line, row in trees(iter_rows(path)):
            text = instruction(row)
            if not text:
                raise UserError(
                    f"{path}, line {line}: no instruction in it; it has {sorted(row)[:6]}",
                    hint="a row needs 'instruction', 'prompt', 'question' or 'messages'",
                )
            tree = row["prompt"] if isinstance(row.get("prompt"), dict) else row
            task = row.get("instruction")
            found.append(Seed(str(row.get("id") or tree.get("message_id") or f"{path.name}:{line}"), text, task.strip() if isinstance(task, str) else text))
    if not found:
        raise UserError(f"{path} holds no instruction")
    return found


def instruction(row: dict[str, Any]) -> str:
    """What a row asks for, its input behind it; "" if it asks nothing."""
    if isinstance(text := row.get("instruction"), str):
        instances = row.get("instances")
        first = instances[0] if isinstance(instances, list) and instances else {}
        given = row.get("input", first.get("input") if isinstance(first, dict) else "")
        return "\n\n".join(part.strip() for part in (text, given) if isinstance(part, str) and part.strip())
    for name in ("prompt", "question", "q", "ctx", "messages"):
        value = row.get(name)
        if isinstance(value, list):
            value = next((m.get("content") for m in value if isinstance(m, dict) and m.get("role") == "user"), None)
        if isinstance(value, str) and value.strip():
            return value.strip()
    try:
        return next((str(m["content"]).strip() for turns in conversations(row) for m in turns if m["role"] == "user"), "")
    except (ValueError, LookupError, TypeError):
        return ""
