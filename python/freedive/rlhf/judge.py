"""`--reward judge:WHO`: a model that is asked what it thinks of an answer. WHO: a model's folder or file, or the address of a service that speaks
OpenAI's API.

Where the row has a `reference` answer, both are compared, in both orders, and what the order decides is a tie (freedive.eval.pairwise): 1 for better,
½ for a tie, 0 for worse. Else it gives a mark from 1 to 10, and the reward is (mark - 1) / 9. A reply without a verdict is None: no reward; so is what is
too long for the judge, which is counted (`judge/too_long`) and told once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from freedive.eval.asker import Asker, OurModel, Service, ask_fitting
from freedive.eval.pairwise import Pair, judge_pairs
from freedive.rl.rewards import Reward, completion_text
from freedive.runs import UserError

JUDGE = "judge:"
FORM = """Rate the answer to this request from 1 (useless) to 10 (could not be better): is it helpful, right, relevant, and in as much detail as the request calls for?

[Request]
{request}

[Answer]
{answer}

Say in a sentence why. Then end with the mark in double brackets, for example [[5]]."""
_MARK = re.compile(r"\[\[\s*(10(?:\.0+)?|[1-9](?:\.\d+)?)\s*\]\]")
_ALONE = re.compile(r"(?<![\d.])(10(?:\.0+)?|[1-9](?:\.\d+)?)(?![\d.]*\d)")


def parse_mark(reply: str) -> float | None:
    """(mark - 1) / 9 of the last [[mark]] from 1 to 10, such as [[9.5]]; without brackets, of the only such number in the reply; else None."""
    found = _MARK.findall(reply) or (alone if len(alone := _ALONE.findall(reply)) == 1 else [])
    return (float(found[-1]) - 1) / 9 if found else None


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
        self._told = False  # that something was too long

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, reference: Sequence[Any] | None = None,
                 log_metric: Callable[[str, float], None] | None = None, **columns: Any) -> list[float | None]:  # fmt: skip
        """Raises UserError for a reference that is no answer, and where the judge cannot be asked."""
        texts = [completion_text(c) for c in completions]
        references = [_reference(r) for r in reference] if reference is not None else [None] * len(texts)
        out: list[float | None] = [None] * len(texts)
        against = [i for i, r in enumerate(references) if r is not None]
        too_long = 0
        alone = [i for i, r in enumerate(references) if r is None]
        if alone:
            asked = [[{"role": "user", "content": _fill(_request(prompts[i]), texts[i])}] for i in alone]
            replies = ask_fitting(self.asker, asked, self.max_new_tokens)
            too_long += replies.count(None)
            for i, said in zip(alone, replies, strict=True):
                out[i] = None if said is None else parse_mark(said)
        if against:
            pairs = [Pair(_messages(prompts[i]), texts[i], references[i] or "") for i in against]
            verdicts = judge_pairs(self.asker, pairs, max_new_tokens=self.max_new_tokens)
            too_long += sum(v.too_long for v in verdicts)
            for i, verdict in zip(against, verdicts, strict=True):
                out[i] = None if verdict.winner is None else {"first": 1.0, "tie": 0.5, "second": 0.0}[verdict.winner]
        if log_metric is not None and too_long:
            log_metric("judge/too_long", float(too_long))
        if too_long and not self._told:
            self._told = True
            print(f"note: {too_long:,} of {len(texts):,} answers are too long for the judge, with what it is asked: they have no reward. Further ones are counted: judge/too_long", file=sys.stderr)
        return out


def _reference(value: Any) -> str | None:
    """A row's reference answer as text. UserError for what is none."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value):
        return completion_text(value)
    raise UserError(f"a row's reference is {value!r:.60}; the judge compares with a text, or with messages", hint="leave the column out, and the judge gives marks")


def _messages(prompt: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _request(prompt: Any) -> str:
    messages = _messages(prompt)
    return str(messages[0]["content"]) if len(messages) == 1 else "\n\n".join(f"{str(m['role']).capitalize()}: {m.get('content') or ''}" for m in messages)


def _fill(request: str, answer: str) -> str:
    """In one pass: an answer may hold braces, or the name of a place."""
    values = {"request": request, "answer": answer or "(nothing)"}
    return re.sub(r"\{(request|answer)\}", lambda m: values[m[1]], FORM)
