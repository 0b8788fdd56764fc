"""Instructions to begin with: rows of Self-Instruct, Alpaca, TRL, questions with answers, or a text file with one a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.runs import UserError


@dataclass(frozen=True)
class Seed:
    id: str
    text: str


def read_seeds(path: Path) -> list[Seed]:
    """UserError names the line of a row that holds no instruction."""
    if not path.exists():
        raise UserError(
            f"{path} does not exist", hint="a file of instructions, one a line, or JSONL with 'instruction', 'prompt', 'question' or 'messages'"
        )
    found: list[Seed] = []
    if path.suffix in (".txt", ".md"):
        found = [Seed(f"{path.name}:{i}", line.strip()) for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
    else:
        for line, row in iter_rows(path):
            text = instruction(row)
            if not text:
                raise UserError(
                    f"{path}, line {line}: no instruction in it; it has {sorted(row)[:6]}",
                    hint="a row needs 'instruction', 'prompt', 'question' or 'messages'",
                )
            found.append(Seed(str(row.get("id") or f"{path.name}:{line}"), text))
    if not found:
        raise UserError(f"{path} holds no instruction")
    return found


def instruction(row: dict[str, Any]) -> str:
    """What a row asks for, its input behind it; "" if it asks nothing."""
    if isinstance(text := row.get("instruction"), str):
        first = (row.get("instances") or [{}])[0]
        given = row.get("input", first.get("input") if isinstance(first, dict) else "")
        return "\n\n".join(part.strip() for part in (text, given) if isinstance(part, str) and part.strip())
    for name in ("prompt", "question", "messages"):
        value = row.get(name)
        if isinstance(value, list):
            value = next((m.get("content") for m in value if isinstance(m, dict) and m.get("role") == "user"), None)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""
