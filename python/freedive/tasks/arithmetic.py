"""Sums with exact answers, in two styles: at once ("=632") and worked column by column, least significant digit first.

    347+285   7+5+0=12, 4+8+1=13, 3+2+1=06. Answer 632

Every step of the worked style copies two digits and one carry and looks up one small sum, always at the same distances, so a
tiny transformer learns it well; the most significant digit of a sum at once needs all carries, so it doesn't learn that. An SFT
mix with a minority of worked answers therefore gives a model that mostly guesses, and reinforcement learning on correctness
alone has something to find. Training and held-out problems are told apart by a hash of the numbers (in sorted order: 3+5 and
5+3 are one problem).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from .draw import Draw

HELD_OUT_OF_TEN = 2  # two problems of ten are held out
ROWS_STREAM = 3
QUESTIONS = ("What is {x}?", "Add {x}.", "Please work out {x}.", "{x}?")
_NUMBER = re.compile(r"(?:Answer|=)\s*(\d+)")


def split_of(numbers: Sequence[int]) -> str:
    """ "train" or "held_out", by a hash of the problem."""
    digest = hashlib.sha256("+".join(map(str, sorted(numbers))).encode()).digest()
    return "held_out" if int.from_bytes(digest[:4], "little") % 10 < HELD_OUT_OF_TEN else "train"


def problem(draw: Draw, split: str, digits: int = 3, terms: int = 2) -> tuple[int, ...]:
    """Numbers of exactly `digits` digits to be added, of the given split."""
    low, high = 10 ** (digits - 1), 10**digits - 1
    while True:
        numbers = tuple(draw.between(low, high) for _ in range(terms))
        if split_of(numbers) == split:
            return numbers


def expression(numbers: Sequence[int]) -> str:
    return "+".join(map(str, numbers))


def direct(numbers: Sequence[int]) -> str:
    return f"={sum(numbers)}"


def worked(numbers: Sequence[int]) -> str:
    """The columns from the right: digits + carry = two digits (tens, the next carry; units, written down); then the answer."""
    width = max(len(str(n)) for n in numbers)
    carry, steps = 0, []
    for column in range(width):
        digits = [n // 10**column % 10 for n in numbers]
        total = sum(digits) + carry
        steps.append("+".join(map(str, [*digits, carry])) + f"={total:02d}")
        carry = total // 10
    return ", ".join(steps) + f". Answer {sum(numbers)}"


def extract(reply: str) -> str | None:
    """The number after the last "Answer" or "=", as written (a leading zero makes it another answer)."""
    found = _NUMBER.findall(reply)
    return found[-1] if found else None


def check(reply: str, answer: str) -> bool:
    return extract(reply) == answer


def is_worked(reply: str) -> bool:
    """True for an answer in the worked style."""
    return "Answer" in reply


def reward(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """TRL's reward function form: 1.0 for the right number, else 0.0. Needs the column `answer`."""
    return [float(check(completion_text(c), a)) for c, a in zip(completions, columns["answer"], strict=True)]


def completion_text(completion: Any) -> str:
    """A completion as text: it may be a string or, in conversations, a list of messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def rl_rows(seed: int, n: int, split: str = "train", digits: int = 3, terms: int = 2) -> Iterator[dict[str, Any]]:
    """n different problems as {"prompt", "answer", "meta"}; `split` is "train" or "held_out"."""
    draw = Draw(seed, ROWS_STREAM + (split == "held_out"))
    seen: set[tuple[int, ...]] = set()
    space = (9 * 10 ** (digits - 1)) ** terms
    if n > space // 20:
        raise ValueError(f"{n} different problems asked for; {digits} digits and {terms} terms give about {space // 10}")
    while len(seen) < n:
        numbers = problem(draw, split, digits, terms)
        key = tuple(sorted(numbers))
        if key not in seen:
            seen.add(key)
            yield {
                "prompt": [{"role": "user", "content": draw.pick(QUESTIONS).format(x=expression(numbers))}],
                "answer": str(sum(numbers)),
                "meta": {"task": "arithmetic", "numbers": list(numbers), "split": split},
            }


def sft_rows(seed: int, n: int, p_worked: float = 0.3, digits: int = 3, terms: int = 2) -> Iterator[dict[str, Any]]:
    """n conversations on training problems; a part `p_worked` of the answers is worked."""
    draw = Draw(seed, ROWS_STREAM + 2)
    for _ in range(n):
        numbers = problem(draw, "train", digits, terms)
        style = "worked" if draw.chance(p_worked) else "direct"
        yield {
            "messages": [
                {"role": "user", "content": draw.pick(QUESTIONS).format(x=expression(numbers))},
                {"role": "assistant", "content": worked(numbers) if style == "worked" else direct(numbers)},
            ],
            "meta": {"task": "arithmetic", "numbers": list(numbers), "style": style, "split": "train"},
        }
