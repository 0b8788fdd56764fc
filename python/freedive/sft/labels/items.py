"""Items to judge: a prompt and answers to it, out of the rows that training reads (sft/rows.py), and of prompts alone.

    {"prompt": text or messages}                        a prompt; answers come from a model, or are written by people
    {"prompt", "completions": [...], "ranks": [...]}    answers that are there; ranks, where a file has them, are kept and never shown
    OASST trees, flat or not                            every prompt of a tree that has several ranked replies; the first prompt where none has
    chosen and rejected, messages, ShareGPT and the rest    the last turn of the assistant is an answer, what stands before it the prompt
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..rows import Message, Ranking, conversations, form_of, rankings, trees


@dataclass(frozen=True)
class Answer:
    """A candidate. Its id is known in its item only; `source` is who wrote it, which no labeller sees."""

    id: str
    text: str
    source: str = ""


@dataclass(frozen=True)
class Item:
    """A prompt with its answers; `ranks` (answer id to rank, 0 is best) are those of the file it came from."""

    id: str
    prompt: tuple[Message, ...]
    answers: tuple[Answer, ...] = ()
    ranks: dict[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As a line of items.jsonl."""
        answers = [{"id": a.id, "text": a.text, "source": a.source} for a in self.answers]
        return {"id": self.id, "prompt": list(self.prompt), "answers": answers} | ({"ranks": self.ranks} if self.ranks else {})

    @staticmethod
    def of_record(row: dict[str, Any]) -> Item:
        answers = tuple(Answer(str(a["id"]), str(a["text"]), str(a.get("source") or "")) for a in row.get("answers") or [])
        return Item(str(row["id"]), tuple(row["prompt"]), answers, {str(k): int(v) for k, v in (row.get("ranks") or {}).items()})


def make_item(prompt: list[Message], texts: Iterable[str], ranks: Iterable[int] | None = None, sources: Iterable[str] | None = None) -> Item:
    """An item whose id is a hash of what it holds, so that the same prompt and answers are the same item in every folder."""
    told, names = list(texts), list(sources or [])
    answers = tuple(Answer(f"a{i}", text, names[i] if i < len(names) else "") for i, text in enumerate(told))
    given = dict(zip((a.id for a in answers), dense(list(ranks)))) if ranks is not None else {}
    key = json.dumps([prompt, told], ensure_ascii=False, sort_keys=True)
    return Item(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12], tuple(prompt), answers, given)


def dense(ranks: list[int]) -> list[int]:
    """0 for the best, then 1, 2 without gaps; ties stay ties."""
    order = {rank: i for i, rank in enumerate(sorted(set(ranks)))}
    return [order[rank] for rank in ranks]


def items(rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, list[Item] | str]]:
    """(line, items) of all rows; a sentence instead of items says what is wrong with the row. Ids are told apart by a number where they are the same."""
    seen: dict[str, int] = {}
    for line, row in trees(rows):
        try:
            found = list(_of(row))
        except (ValueError, TypeError, KeyError) as error:
            yield line, f"{error}" if isinstance(error, ValueError) else f"the row is not in a form known here ({type(error).__name__}: {error})"
            continue
        out = []
        for item in found:
            seen[item.id] = seen.get(item.id, 0) + 1
            again = seen[item.id]
            out.append(item if again == 1 else Item(f"{item.id}-{again}", item.prompt, item.answers, item.ranks))
        yield line, out


def _of(row: dict[str, Any]) -> Iterator[Item]:
    if "completions" in row:
        texts, sources = zip(*(_completion(c) for c in row["completions"])) if row["completions"] else ((), ())
        ranks = row.get("ranks")
        if ranks is not None and len(ranks) != len(texts):
            raise ValueError(f"{len(texts)} completions have {len(ranks)} ranks")
        named = row.get("models") or row.get("sources") or sources
        yield make_item(_prompt(row["prompt"]), texts, [int(r) for r in ranks] if ranks is not None else None, [str(n) for n in named])
        return
    if _only_prompt(row):
        yield make_item(_prompt(row["prompt"]), [])
        return
    form = form_of(row)
    if form == "tree" or "rejected" in row and "chosen" in row:
        found = [_of_ranking(r) for r in rankings(row)]
        yield from found or [make_item([{"role": "user", "content": row["prompt"]["text"]}], [])]
        return
    for messages in conversations(row):
        answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
        prompt = messages[:-1] if answer is not None else messages
        if not prompt:
            raise ValueError("the conversation has no question")
        yield make_item(prompt, [answer] if answer else [])


def _only_prompt(row: dict[str, Any]) -> bool:
    """A row of a prompt alone; an OASST tree's prompt is a node of it, and no text."""
    if not isinstance(row.get("prompt"), (str, list)):
        return False
    return not ({"completion", "chosen", "messages", "conversations", "turns"} & set(row))


def _prompt(value: Any) -> list[Message]:
    """A prompt as messages. ValueError for an empty one."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("the prompt is empty")
        return [{"role": "user", "content": value}]
    return conversations({"messages": value})[0]


def _completion(value: Any) -> tuple[str, str]:
    """(text, source) of an answer: a text, one message of the assistant in a list, or {"text" | "response" | "content", "model" | "source"}."""
    if isinstance(value, str):
        return value, ""
    if isinstance(value, dict):
        text = next((value[k] for k in ("text", "response", "content") if isinstance(value.get(k), str)), None)
        if text is not None:
            return text, str(value.get("model") or value.get("source") or "")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and isinstance(value[0].get("content"), str):
        return value[0]["content"], ""
    raise ValueError("an answer to be judged is one text; found " + json.dumps(value, ensure_ascii=False, default=str)[:60])


def _of_ranking(r: Ranking) -> Item:
    if not r.prompt:
        raise ValueError("chosen and rejected have no prompt in common")
    return make_item(r.prompt, [_completion(c)[0] for c in r.completions], r.ranks)

