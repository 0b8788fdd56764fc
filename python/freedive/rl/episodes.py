"""Episodes: generation in turns with an environment, token in, token out. Batched as the engine batches: who has ended leaves, who waits for
a tool costs nothing, and the answer's ids are one more prefill on the cache.

Three ways of speaking, by what the model's vocabulary has:

- slots (our own models): `<|python_start|>code<|python_end|>` within the turn, the answer between `<|output_start|>` and `<|output_end|>`;
- JSON (ChatML models, with or without tokens of their own for it): `<tool_call>{"name", "arguments"}</tool_call>`, the answer a user's turn;
- turns: an environment with `step(text)` answers each turn of the model with the next of the user.

What the model did not say is masked. A model that opens an answer of its own ends there and has `forged` for a reason; the token stays and is
trained on, as every sampled one: banning it would change the distribution that the gradient is of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from freedive.inference import Engine
from freedive.inference.engine import Params, Request
from freedive.runs import UserError
from freedive.tokenizer import render
from freedive.tokenizer.chat import turn_header
from freedive.tokenizer.chat_json import ANSWER, ANSWER_END, CALL, CALL_END, MARKS, OWN, with_marks
from freedive.tokenizer.chat_tools import ARGUMENTS, SLOTS

from .environments import TooLong, begin, called, schema, time_limit, tools_of
from .rollouts import Rollout

_CALLS = re.compile(rf"{CALL}\s*(.*?)\s*{CALL_END}", re.DOTALL)


@dataclass
class _Row:
    prompt: list[int]
    seed: int
    environment: Any
    tools: dict[str, Callable[..., Any]]
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0
    failed: int = 0
    steps: int = 0
    reason: str = "length"
    turn: int = 0  # where the model's present turn begins, in ids
    request: Request | None = None


class Episodes:
    """Rollouts with an environment each. max_calls: calls of tools, or turns of step, in an episode."""

    ANSWER_TOKENS = 256  # of what an environment says at once

    def __init__(self, engine: Engine, factory: Callable[[], Any], *, max_calls: int = 8, max_answer_tokens: int = ANSWER_TOKENS, timeout: float = 0.0):
        tok = engine.tokenizer
        if tok is None:
            raise UserError("environments read and write text, and this engine has no tokenizer")
        chat = tok.require_chat()
        if chat.form != "turns":
            raise UserError("environments need a model whose conversation is made of turns; this one's has Llama 2's form")
        self.engine, self.factory, self.tok, self.chat = engine, factory, tok, chat
        self.max_calls, self.max_answer_tokens, self.timeout = max_calls, max_answer_tokens, timeout
        example = factory()
        self.slots = OWN in tok.special_tokens
        self.tools = tools_of(example)
        self.steps = callable(getattr(example, "step", None))
        if self.slots and (unknown := [n for n in self.tools if n not in SLOTS]):
            raise UserError(f"the environment has the tool {unknown[0]!r}, and this model has tokens for {' and '.join(SLOTS)} only",
                            hint="name the method python(code) or search(query), or use step(text)")  # fmt: skip
        self.schemas = [] if self.slots else [schema(n, m) for n, m in self.tools.items()]
        special = lambda name: tok.special_tokens.get(name, -1)
        self._ends = {special(SLOTS[n][1]): n for n in self.tools} if self.slots else {}
        self._starts = {n: special(SLOTS[n][0]) for n in self.tools} if self.slots else {}
        answers = [t for names in SLOTS.values() for t in names[2:]] if self.slots else [ANSWER, ANSWER_END]
        self._forged = frozenset(special(t) for t in (chat.start, *answers)) - {-1}

    def sample(self, rows: Sequence[dict[str, Any]], generations: int, params: Params, seeds: Sequence[int]) -> list[Rollout]:
        """`generations` rollouts of each row, those of one next to each other; params.max_new_tokens counts what the model says.

        Raises UserError for a row that cannot be rendered, a prompt too long, and an environment whose reset or step fails.
        """
        repeated = [row for row in rows for _ in range(generations)]
        states = [self._begin(row, seed) for row, seed in zip(repeated, seeds, strict=True)]
        try:
            for state in states:
                state.request = self._submit(state, params)
            running = {state.request: state for state in states}
            while running:
                for request in self.engine.step():
                    if request in running and self._advance(state := running.pop(request), params):
                        running[state.request] = state
        finally:
            for state in states:
                if state.request is not None:
                    self.engine.cancel(state.request)
        return [self._rollout(state) for state in states]

    def prompt(self, row: dict[str, Any], added: str | None = None) -> list[int]:
        """The ids of a row's question, with what the environment's reset added to it."""
        prompt = row["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        if added:
            messages[-1] = {**messages[-1], "content": messages[-1]["content"] + added}
        return render(self.tok, messages, add_generation_prompt=True, tools=self.schemas or None)[0]

    # ---- one row ---------------------------------------------------------------------------------------------------

    def _begin(self, row: dict[str, Any], seed: int) -> _Row:
        environment, added = begin(self.factory, row, self.timeout)
        return _Row(self.prompt(row, added), seed, environment, tools_of(environment))

    def _submit(self, row: _Row, params: Params) -> Request:
        stops = {*params.stop_ids, *self._ends, *self._forged}
        return self.engine.submit([*row.prompt, *row.ids], replace(params, stop_ids=tuple(sorted(stops)), max_new_tokens=params.max_new_tokens - sum(row.mask)), row.seed)

    def _advance(self, row: _Row, params: Params) -> bool:
        """A request has ended: answer what it ends with, if that is to be answered. True if the row goes on."""
        assert row.request is not None and row.request.done is not None
        done = row.request.done
        row.ids += done.ids
        row.mask += [1] * len(done.ids)
        row.logprobs += done.logprobs.tolist()
        last = done.ids[-1] if done.ids and done.stopped else -1
        row.reason = "stop" if done.stopped else "length"
        if last in self._forged:
            row.reason = "forged"
        going = False
        if last in self._ends:
            going = self._slot_call(row, self._ends[last])
        elif last in params.stop_ids:
            going = self._turn_ended(row)
        if going:
            room = self.engine.model.config.max_positions - len(row.prompt) - len(row.ids)
            if sum(row.mask) >= params.max_new_tokens or room < 1:
                row.reason, going = "length", False
        if going:
            row.request = self._submit(row, params)
        elif row.turn < len(row.ids):
            self._say(row)
        return going

    def _slot_call(self, row: _Row, name: str) -> bool:
        """Our own models: the call is the last thing said, and its answer goes on in the same turn."""
        tok, ids = self.tok, row.ids
        at = next((i for i in range(len(ids) - 2, -1, -1) if ids[i] in tok.special_ids or not row.mask[i]), -1)
        if at < 0 or not row.mask[at] or ids[at] != self._starts[name]:
            row.reason = "malformed"
            return False
        if row.calls >= self.max_calls:
            row.reason = "calls"
            return False
        text = tok.decode(ids[at + 1 : -1])
        said = tok.decode([t for t, m in zip(ids[row.turn : at], row.mask[row.turn : at]) if m and t not in tok.special_ids])
        answer = self._ask(row, name, text, said, {ARGUMENTS[name]: text}, positional=True)
        self._put(row, [tok.special(SLOTS[name][2]), *tok.encode(answer)[: self.max_answer_tokens], tok.special(SLOTS[name][3])])
        row.turn = len(row.ids)
        return True

    def _turn_ended(self, row: _Row) -> bool:
        """The model has ended its turn: calls in it as JSON are run; else `step` may answer; else the episode is over."""
        tok = self.tok
        end = tok.im_end
        text = tok.decode([t for t in row.ids[row.turn :] if t != end])
        found = _CALLS.findall(text) if self.schemas else []
        if found:
            if row.calls + len(found) > self.max_calls:
                row.reason = "calls"
                return False
            parts: list[int] = []
            for number, call in enumerate(found):
                name, arguments, problem = _parsed(call, row.tools)
                answer = self._ask(row, name, call, _CALLS.sub("", text).strip() if not number else "", arguments) if problem is None else self._failed(row, call, problem)
                shown = tok.encode(MARKS.sub(r"<\1tool response>", answer))[: self.max_answer_tokens]
                parts += [*with_marks(tok, ("\n" if number else "") + ANSWER + "\n"), *shown, *with_marks(tok, "\n" + ANSWER_END)]
            self._user_turn(row, parts)
            return True
        if CALL in text and self.schemas:
            row.reason = "malformed"
            return False
        if not self.steps:
            return False
        return self._step(row, text)

    def _step(self, row: _Row, text: str) -> bool:
        self._say(row)
        if row.steps >= self.max_calls:
            row.reason = "calls"
            return False
        row.steps += 1
        try:
            with time_limit(self.timeout):
                told = row.environment.step(text)
        except TooLong:
            row.reason = "timeout"
            return False
        except Exception as error:
            raise UserError(f"step of the environment {type(row.environment).__name__} failed: {type(error).__name__}: {error}") from error
        if told is None:
            return False
        row.messages.append({"role": "user", "content": str(told)})
        self._user_turn(row, self.tok.encode(str(told))[: self.max_answer_tokens])
        return True

    def _ask(self, row: _Row, name: str, shown: str, said: str, arguments: dict[str, Any], positional: bool = False) -> str:
        method = row.tools[name]
        answer = called(method, {}, self.timeout, shown) if positional else called(method, arguments, self.timeout)  # a slot has one argument, whatever the method calls it
        row.calls += 1
        row.failed += answer.startswith("error:")
        if said:
            row.texts.append(said)
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        row.messages += [{"role": "assistant", "content": said, "tool_calls": [call]}, {"role": "tool", "name": name, "content": answer}]
        return answer

    def _failed(self, row: _Row, shown: str, problem: str) -> str:
        row.calls += 1
        row.failed += 1
        row.messages += [{"role": "assistant", "content": shown}, {"role": "tool", "name": "", "content": f"error: {problem}"}]
        return f"error: {problem}"

    def _say(self, row: _Row) -> None:
        """What the model said since its turn began, into messages and texts."""
        text = self.tok.decode([t for t, m in zip(row.ids[row.turn :], row.mask[row.turn :]) if m and t not in self.tok.special_ids])
        row.texts.append(text)
        row.messages.append({"role": "assistant", "content": text})
        row.turn = len(row.ids)

    def _user_turn(self, row: _Row, content: list[int]) -> None:
        tok, chat = self.tok, self.chat
        self._put(row, [*tok.encode(chat.after), *turn_header(tok, chat, "user"), *content, tok.special(chat.end), *tok.encode(chat.after),
                        *turn_header(tok, chat, chat.assistant)])  # fmt: skip
        row.turn = len(row.ids)

    def _put(self, row: _Row, ids: list[int]) -> None:
        row.ids += ids
        row.mask += [0] * len(ids)
        row.logprobs += [0.0] * len(ids)

    def _rollout(self, row: _Row) -> Rollout:
        ids, mask, logprobs = row.ids, row.mask, row.logprobs
        while mask and not mask[-1]:  # an answer that nothing came after teaches nothing
            ids, mask, logprobs = ids[:-1], mask[:-1], logprobs[:-1]
        return Rollout(row.prompt, ids, np.asarray(logprobs, np.float32), "".join(row.texts), row.reason == "stop", row.seed, mask=tuple(mask), calls=row.calls,
                       failed_calls=row.failed, finish_reason=row.reason, messages=row.messages, environment=row.environment)  # fmt: skip


def _parsed(text: str, tools: dict[str, Any]) -> tuple[str, dict[str, Any], str | None]:
    """(tool, arguments, None), or what is wrong with a call."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        return "", {}, f"the call is not JSON: {str(error)[:100]}"
    name, arguments = (call.get("name"), call.get("arguments", {})) if isinstance(call, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return "", {}, 'a call is {"name": ..., "arguments": {...}}'
    if name not in tools:
        return "", {}, f"there is no tool {name[:40]!r}; there are: {', '.join(tools)}"
    return name, arguments, None
