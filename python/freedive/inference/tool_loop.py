"""Generation with tools: token in, token out (talk 3.1). Call -> run -> the answer's ids go into the row -> on with it.

A call is `<|python_start|>code<|python_end|>` or `<|search_start|>query<|search_end|>`; the answer stands between `<|output_start|>` and
`<|output_end|>`, or `<|results_start|>` and `<|results_end|>`. These are special tokens, so no text a user writes or a tool returns can
hold one. A model could say them: a row in which it opens an answer of its own ends there. A prompt that holds answers is taken only if
this loop wrote them. Ids from tools are masked: they are never trained on, and have no log-prob.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from freedive.runs import UserError
from freedive.tokenizer import Tokenizer
from freedive.tokenizer.chat_tools import SLOTS

from .engine import Engine, Request
from .params import Completion, Params
from .stops import StopText
from .tools import Tool

REMEMBERED = 100_000  # answers whose rows are taken back as prompts


@dataclass(frozen=True)
class ToolCall:
    """One call and its answer."""

    tool: str
    text: str
    answer: str
    seconds: float

    @property
    def failed(self) -> bool:
        return self.answer.startswith("error:") or "\nerror:" in self.answer


@dataclass
class ToolCompletion:
    """A completion with calls in it. `finish_reason`: stop, length, cancelled, forged (the model opened an answer of its own), malformed
    (a call that was never opened, or holds special tokens) or calls (more than allowed)."""

    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)  # 1: sampled by the model, 0: put in by a tool
    logprobs: list[float] = field(default_factory=list)  # 0.0 where the mask is 0
    calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str = "length"
    text: str = ""  # what the model said outside of calls


@dataclass
class _Row:
    index: int
    prompt: list[int]
    params: Params
    seed: int
    out: ToolCompletion = field(default_factory=ToolCompletion)
    request: Request | None = None


class ToolLoop:
    """Tools for one engine. `tools` maps a slot (python, search) to what answers its calls."""

    def __init__(self, engine: Engine, tools: Mapping[str, Tool], *, max_calls: int = 8, max_answer_tokens: int = 512):
        tok = engine.tokenizer
        if tok is None:
            raise UserError("tools read and write text, and this engine has no tokenizer", hint="Engine(model, tokenizer)")
        for name in tools:
            if name not in SLOTS:
                raise UserError(f"there are no tokens for the tool {name!r}", hint=f"tools: {', '.join(SLOTS)}")
            if missing := [t for t in SLOTS[name] if t not in tok.special_tokens]:
                raise UserError(f"this model's tokenizer has no {missing[0]}, so it cannot call {name}", hint="models trained by freedive have tool tokens")
        if max_calls < 0 or max_answer_tokens < 1:
            raise UserError(f"max_calls is {max_calls} and max_answer_tokens {max_answer_tokens}; they must be at least 0 and 1")
        self.engine, self.tools, self.tok = engine, dict(tools), tok
        self.max_calls, self.max_answer_tokens = max_calls, max_answer_tokens
        ids = {name: tuple(tok.special(t) for t in tokens) for name, tokens in SLOTS.items() if all(t in tok.special_tokens for t in tokens)}
        self._start = {ids[name][0]: name for name in tools}
        self._end = {ids[name][1]: name for name in tools}
        self._answer = {name: ids[name][2:] for name in tools}
        self._forged = frozenset(i for pair in ids.values() for i in pair[2:])  # also of tools that are not offered
        self._written: OrderedDict[bytes, None] = OrderedDict()

    def generate(self, prompts: Sequence[Sequence[int]], params: Params, seeds: Sequence[int] | None = None) -> list[ToolCompletion]:
        """One completion per prompt, in order, batched as `Engine.generate`. max_new_tokens counts what the model says, not the answers.

        Raises UserError for prompts and parameters as `Engine.generate`, and for a prompt with an answer that no tool of this loop gave.
        """
        rows = [_Row(i, [int(t) for t in p], params, (seeds[i] if seeds is not None else i)) for i, p in enumerate(prompts)]
        for row in rows:
            self._check(row)
        try:
            for row in rows:
                row.request = self._submit(row)
            running = {row.request: row for row in rows}
            while running:
                for request in self.engine.step():
                    if (found := running.pop(request, None)) is not None and self._advance(found):
                        running[found.request] = found
        finally:
            for row in rows:
                if row.request is not None:
                    self.engine.cancel(row.request)
        return [row.out for row in rows]

    def stream(self, prompt: Sequence[int], params: Params, seed: int = 0) -> Iterator[str | ToolCall | ToolCompletion]:
        """Pieces of text as they come, each call with its answer, and last the whole completion."""
        row = _Row(0, [int(t) for t in prompt], params, seed)
        self._check(row)
        row.request = self._submit(row)
        return self._events(row)

    def _events(self, row: _Row) -> Iterator[str | ToolCall | ToolCompletion]:
        text, going = StopText(self.tok, row.params.stop), True
        try:
            while going:
                seen, calling, request = 0, False, row.request
                assert request is not None
                while True:
                    if request.done is None:
                        self.engine.step()
                    over = request.done is not None
                    ids = self.engine.so_far(request)
                    for token in ids[seen:]:
                        calling = (calling or token in self._start) and token not in self._end
                        if not calling and token not in self.tok.special_ids:
                            text.push(token)
                    seen = len(ids)
                    if piece := text.safe():
                        yield piece
                    if over:
                        break
                calls = len(row.out.calls)
                going = self._advance(row)
                yield from row.out.calls[calls:]
            if piece := text.rest():
                yield piece
            yield row.out
        finally:
            if row.request is not None:
                self.engine.cancel(row.request)

    # ---- the state machine -----------------------------------------------------------------------------------------

    def _check(self, row: _Row) -> None:
        """A prompt may hold answers only if this loop has put every one of them there, at this place."""
        for at, token in enumerate(row.prompt):
            if token in self._forged and _digest(row.prompt[: at + 1]) not in self._written:
                raise UserError(f"the prompt holds {self.tok.decode([token])} at position {at}, which only a tool may write",
                                hint="give the conversation as messages, or go on with ids that this loop returned")  # fmt: skip

    def _submit(self, row: _Row) -> Request:
        said = sum(row.out.mask)
        stops = {*row.params.stop_ids, *self._end, *self._forged}
        params = replace(row.params, stop_ids=tuple(sorted(stops)), max_new_tokens=row.params.max_new_tokens - said,
                         min_new_tokens=max(0, row.params.min_new_tokens - said))  # fmt: skip
        return self.engine.submit([*row.prompt, *row.out.ids], params, row.seed)

    def _advance(self, row: _Row) -> bool:
        """A request of the row has ended: run the call it ends with, if any. True if the row goes on, with a new request."""
        assert row.request is not None and row.request.done is not None
        done, out = row.request.done, row.out
        ids, logprobs = list(done.ids), done.logprobs.tolist()
        last = ids[-1] if ids and done.stopped else -1
        if last in self._forged:  # the token itself is not kept: no row holds an answer that no tool gave
            ids, logprobs = ids[:-1], logprobs[:-1]
        out.ids += ids
        out.mask += [1] * len(ids)
        out.logprobs += logprobs
        out.finish_reason = self._reason(done, last)
        going = last in self._end and last not in row.params.stop_ids and self._call(row, self._end[last], last)
        if not going:
            out.text = self._spoken(row)
        return going

    def _reason(self, done: Completion, last: int) -> str:
        return "forged" if last in self._forged else done.finish_reason

    def _call(self, row: _Row, name: str, end: int) -> bool:
        out = row.out
        begin = next((i for i in range(len(out.ids) - 2, -1, -1) if out.ids[i] in self.tok.special_ids or not out.mask[i]), -1)
        if begin < 0 or not out.mask[begin] or self._start.get(out.ids[begin]) != name:
            out.finish_reason = "malformed"
            return False
        if len(out.calls) >= self.max_calls:
            out.finish_reason = "calls"
            return False
        text = self.tok.decode(out.ids[begin + 1 : -1])
        started = time.perf_counter()
        try:
            answer = self.tools[name](text)
        except Exception as error:  # a tool of the user's: its bug is an answer, not the end of every other row
            answer = f"error: {type(error).__name__}: {error}"
        out.calls.append(ToolCall(name, text, answer, time.perf_counter() - started))
        opened, closed = self._answer[name]
        self._put(row, [opened])
        self._put(row, [*self.tok.encode(answer)[: self.max_answer_tokens], closed])
        return self._go_on(row)

    def _go_on(self, row: _Row) -> bool:
        """Asks the model for what comes after an answer; False if there is no room for more."""
        room = self.engine.model.config.max_positions - len(row.prompt) - len(row.out.ids)
        if sum(row.out.mask) >= row.params.max_new_tokens or room < 1:
            row.out.finish_reason = "length"
            return False
        row.request = self._submit(row)
        return True

    def _put(self, row: _Row, ids: list[int]) -> None:
        """Ids from a tool; the row up to them is remembered as written here."""
        row.out.ids += ids
        row.out.mask += [0] * len(ids)
        row.out.logprobs += [0.0] * len(ids)
        self._written[_digest([*row.prompt, *row.out.ids])] = None
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)

    def _spoken(self, row: _Row) -> str:
        """What the model said outside of calls, up to a stop string."""
        text, calling = StopText(self.tok, row.params.stop), False
        for token, mine in zip(row.out.ids, row.out.mask, strict=True):
            calling = (calling or token in self._start) and token not in self._end
            if mine and not calling and token not in self.tok.special_ids:
                text.push(token)
        text.rest()
        return text.text


def _digest(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, np.int32).tobytes(), digest_size=16).digest()


def offered(tok: Tokenizer) -> list[str]:
    """The tools whose tokens a tokenizer has."""
    return [name for name, tokens in SLOTS.items() if all(t in tok.special_tokens for t in tokens)]
