"""The forms in which conversations are published, as one: a list of messages {"role", "content"}.

messages        OpenAI's, TRL's and UltraChat's form
conversations   ShareGPT's: {"from": "human" | "gpt" | "system", "value"}
prompt and completion    TRL's, texts or messages
turns           dialogue corpora: {"role" | "speaker", "text"}
prompt with replies      an OASST tree: one conversation for each path of the best-ranked replies

What a row holds beside its turns (tool calls of a dialogue corpus, for example) is not read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Message = dict[str, str]
FORMS = "messages, conversations, prompt + completion, turns, or an OASST tree (prompt with replies)"
_ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system",
}  # fmt: skip


def conversations(row: dict[str, Any]) -> list[list[Message]]:
    """The conversations of a row: one, or for an OASST tree one for each first reply that people ranked.

    Raises ValueError that says what is wrong with the row.
    """
    if "messages" in row:
        return [_turns(row["messages"], "role", "content")]
    if "conversations" in row:
        return [_turns(row["conversations"], "from", "value")]
    if "turns" in row:
        turns = row["turns"]
        return [_turns(turns, "speaker" if turns and isinstance(turns, list) and "speaker" in turns[0] else "role", "text")]
    if isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
        return list(_tree(row["prompt"]))
    if "prompt" in row and "completion" in row:
        parts = []
        for key, role in (("prompt", "user"), ("completion", "assistant")):
            value = row[key]
            parts += [{"role": role, "content": value}] if isinstance(value, str) else _turns(value, "role", "content")
        return [parts]
    raise ValueError(f"a row needs 'messages'; it has {sorted(row)[:6]}")


def _turns(turns: Any, role: str, text: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise ValueError("the conversation is no list of turns, or an empty one")
    out = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or role not in turn or text not in turn:
            raise ValueError(f"turn {number} needs '{role}' and '{text}'")
        name = str(turn[role])
        out.append({**({} if text != "content" else turn), "role": _ROLES.get(name.lower(), name), "content": turn[text]})
    return out


def _tree(prompt: dict[str, Any]) -> Iterator[list[Message]]:
    """Each reply to the first prompt, then down the best-ranked replies, to the last turn of the assistant."""
    first = {"role": "user", "content": prompt["text"]}
    for reply in sorted(_usable(prompt), key=_rank):
        path: list[Message] = [first]
        node: dict[str, Any] | None = reply
        while node is not None:
            path.append({"role": _ROLES.get(node.get("role", ""), "assistant"), "content": node["text"]})
            following = sorted(_usable(node), key=_rank)
            node = following[0] if following else None
        if path[-1]["role"] == "user":
            path.pop()
        yield path


def _usable(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [r for r in node.get("replies") or [] if not r.get("deleted") and isinstance(r.get("text"), str) and r["text"].strip()]


def _rank(node: dict[str, Any]) -> tuple[bool, int]:
    """0 is best; what nobody ranked comes last."""
    rank = node.get("rank")
    return (rank is None, rank or 0)
