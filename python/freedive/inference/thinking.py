"""Reasoning, which models that think write before their answer, told from the answer."""

from __future__ import annotations

THINK, THINK_END = "<think>", "</think>"


class Thinking:
    """Splits what a model says into reasoning, between <think> and </think> at its beginning, and the answer."""

    def __init__(self) -> None:
        self._state, self._held = "start", ""

    def push(self, text: str, over: bool = False) -> tuple[str, str]:
        """(answer, reasoning) of more text; what may be half of a mark is held back until it is known."""
        self._held += text
        answer = reasoning = ""
        while self._held:
            if self._state == "start":
                begin = self._held.lstrip()
                if begin.startswith(THINK):
                    self._state, self._held = "thinking", begin[len(THINK) :].lstrip("\n")
                elif THINK.startswith(begin) and not over:
                    break
                else:
                    self._state = "answer"
            elif self._state == "thinking":
                thought, mark, rest = self._held.partition(THINK_END)
                if mark:
                    reasoning += thought
                    self._state, self._held = "after", rest
                    continue
                keep = 0 if over else next((n for n in range(len(THINK_END) - 1, 0, -1) if thought.endswith(THINK_END[:n])), 0)
                reasoning += thought[: len(thought) - keep]
                self._held = thought[len(thought) - keep :]
                break
            elif self._state == "after":
                self._held = self._held.lstrip("\n")
                if self._held:
                    self._state = "answer"
            else:
                answer += self._held
                self._held = ""
        return answer, reasoning


def answer_of(text: str) -> str:
    """A whole reply without its reasoning."""
    return Thinking().push(text, over=True)[0]
