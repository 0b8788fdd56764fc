"""`--reward judge:WHO`: a model that is asked what it thinks of an answer. WHO: a model's folder or file, or the address of a service that speaks
OpenAI's API.

Where the row has a `reference` answer, both are compared, in both orders, and what the order decides is a tie (freedive.eval.pairwise): 1 for better,
½ for a tie, 0 for worse. Else it gives a mark from 1 to 10, and the reward is (mark - 1) / 9. A reply without a verdict is None: no reward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freedive.eval.asker import Asker, OurModel, Service
from freedive.rl.rewards import Reward, completion_text
from freedive.runs import UserError

JUDGE = "judge:"
FORM = """Rate the answer to this request from 1 (useless) to 10 (could not be better): is it helpful, right, relevant, and in as much detail as the request calls for?

[Request]
{request}

[Answer]
{answer}

Say in a sentence why. Then end with the mark in double brackets, for example [[5]]."""
_MARK = re.compile(r"\[\[\s*(10|[1-9])(?:\.\d+)?\s*\]\]")


def parse_mark(reply: str) -> float | None:
    """(mark - 1) / 9 of the last [[mark]] from 1 to 10; without brackets, of the only such number in the reply; else None."""
    found = _MARK.findall(reply) or (alone if len(alone := re.findall(r"(?<![\d.])(10|[1-9])(?![\d.]*\d)", reply)) == 1 else [])
    return (int(found[-1]) - 1) / 9 if found else None


def judge_reward(name: str, threads: int | None = None) -> Reward:
    """The reward function of `judge:WHO`. Raises UserError."""
    who = name.removeprefix(JUDGE)
    if not who:
        raise UserError("which judge?", hint="judge:model.gguf, or judge:http://localhost:8000/v1")
    if who.startswith(("http://", "https://")):
        return Judged(Service(who))
    from freedive.inference import load

    return Judged(OurModel(load(Path(who), threads=threads)))


class Judged:
    """A reward function that asks."""

    __name__ = "judge"

    def __init__(self, asker: Asker, max_new_tokens: int = 128):
        self.asker, self.max_new_tokens = asker, max_new_tokens

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, reference: Sequence[Any] | None = None, **columns: Any) -> list[float | None]:
        texts = [completion_text(c) for c in completions]
        references = reference if reference is not None else [None] * len(texts)
        out: list[float | None] = [None] * len(texts)
        against = [i for i, r in enumerate(references) if r is not None]
        alone = [i for i, r in enumerate(references) if r is None]
        if alone:
            asked = [[{"role": "user", "content": _fill(_request(prompts[i]), texts[i])}] for i in alone]
            for i, (said,) in zip(alone, self.asker.ask(asked, max_new_tokens=self.max_new_tokens), strict=True):
                out[i] = parse_mark(said)
        if against:
            from freedive.eval.pairwise import Pair, judge_pairs

            pairs = [Pair(_messages(prompts[i]), texts[i], completion_text(references[i])) for i in against]
            for i, verdict in zip(against, judge_pairs(self.asker, pairs, max_new_tokens=self.max_new_tokens), strict=True):
                out[i] = None if verdict.winner is None else {"first": 1.0, "tie": 0.5, "second": 0.0}[verdict.winner]
        return out


def _messages(prompt: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _request(prompt: Any) -> str:
    messages = _messages(prompt)
    return str(messages[0]["content"]) if len(messages) == 1 else "\n\n".join(f"{str(m['role']).capitalize()}: {m.get('content') or ''}" for m in messages)


def _fill(request: str, answer: str) -> str:
    """In one pass: an answer may hold braces, or the name of a place."""
    values = {"request": request, "answer": answer or "(nothing)"}
    return re.sub(r"\{(request|answer)\}", lambda m: values[m[1]], FORM)
