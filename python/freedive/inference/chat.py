"""`freedive chat`: talk to a model in the terminal. A base model, which knows no turns, continues what is typed instead."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from freedive.model import is_adapter
from freedive.runs import UserError, check_at_least, option, write_json_atomic

from .conversation import Conversation
from .folder import chat_tokens_untrained
from .load import ADAPTER_HELP, DTYPE_HELP, KV_CACHE_HELP, LM, WEIGHTS_HELP, load
from .params import Params
from .tool_loop import ToolCall, ToolLoop, offered

DIVE = Path("freedive-dive")
HELP = """/clear       forget the conversation
/system TEXT set the system message and begin anew (no text: none)
/temp X      temperature: 0 takes the likeliest token
/save FILE   write the conversation as JSON
/quit        leave, as Ctrl-D does
A line that ends with \\ goes on in the next; a block between lines of three quotes (\"\"\") may hold empty lines. Ctrl-C stops an answer.
A message that begins with / but names no command is sent; // sends any message that begins with /."""
COMMANDS = ("/clear", "/system", "/temp", "/save", "/quit", "/exit", "/help")


@dataclass(frozen=True)
class ChatConfig:
    """Talk to a model."""

    path: Path | None = option(None, "the model: a folder, a .gguf file, a llama2.c .bin (default: the newest of freedive-dive/rl, sft, pretrain)", positional=True)
    model: Path | None = option(None, "the same, by name")
    adapter: Path | None = option(None, ADAPTER_HELP)
    prompt: str | None = option(None, "ask this, print the answer, and leave")
    system: str | None = option(None, "a system message")
    base: bool = option(False, "continue texts instead of answering, as a base model does")
    tools: list[str] = option([], "python (a sandbox), calculator (instead of it), search:FOLDER, search:http://ADDRESS; for models that call them")
    temperature: float | None = option(None, "0 takes the likeliest token; 1 samples as trained (default: 0, and 0.8 for a base model)")
    top_k: int = option(0, "sample among the k likeliest (0: off)")
    top_p: float = option(1.0, "sample among the likeliest that make up p (1: off)")
    min_p: float = option(0.0, "sample among those at least so likely as this part of the likeliest (0: off)")
    repetition_penalty: float = option(1.0, "above 1: what was said already becomes less likely")
    max_new_tokens: int = option(512, "longest answer, in tokens")
    seed: int = option(0, "of sampling")
    threads: int | None = option(None, "CPU threads (default: all)")
    weights: str = option("auto", WEIGHTS_HELP)
    dtype: str = option("float32", DTYPE_HELP)
    kv_cache_dtype: str = option("auto", KV_CACHE_HELP)


def find_model(path: Path | None) -> Path:
    """The model named, or the one trained last in the dive that is named or lies here. Raises UserError if there is none."""
    if path is not None and (path.is_file() or (path / "config.json").is_file() or is_adapter(path)):
        return path
    for name in ("rl", "sft", "pretrain"):
        if ((path or DIVE) / name / "model.safetensors").is_file():
            return (path or DIVE) / name
    if path is not None:
        return path  # load says what is wrong with it
    raise UserError("no model was named, and there is none in ./freedive-dive", hint="run freedive dive first, or name one: freedive chat MODEL")


def make_tools(lm: LM, names: list[str]) -> ToolLoop | None:
    """The tools asked for. Raises UserError for one that is unknown or cannot be had."""
    from .search import BM25, HTTP
    from .tool_json import JsonToolLoop, calls_as_json
    from .tools import Python, Search, Tool, calculator

    as_json = calls_as_json(lm.tokenizer) and not offered(lm.tokenizer)
    tools: dict[str, Tool] = {}
    for name in names:
        kind, _, where = name.partition(":")
        if kind == "python":
            tools["python"] = Python()
        elif kind == "calculator":
            tools["calculator" if as_json else "python"] = calculator
        elif kind == "search" and where:
            tools["search"] = Search(HTTP(where) if where.startswith(("http://", "https://")) else BM25.of(Path(where)))
        else:
            raise UserError(f"unknown tool {name!r}", hint="tools: python, calculator, search:FOLDER, search:http://ADDRESS")
    return None if not tools else JsonToolLoop(lm.engine, tools) if as_json else ToolLoop(lm.engine, tools)


class Chat:
    """One conversation in the terminal."""

    def __init__(self, c: ChatConfig, lm: LM, base: bool):
        self.c, self.lm, self.base = c, lm, base
        self.temperature = c.temperature if c.temperature is not None else 0.8 if base else 0.0
        self.room = lm.model.config.max_positions
        self.tools = None if base else make_tools(lm, c.tools)
        self.conversation = None if base else self._begin(c.system)
        self.turn = 0

    def _begin(self, system: str | None) -> Conversation:
        opening = getattr(self.tools, "opening", None)
        return Conversation(self.lm.tokenizer, self.room, system, opening(system) if opening else None)

    def say(self, text: str) -> None:
        """Answer `text`, printing as it comes, and keep both. Ctrl-C ends the answer early, and what was said is kept."""
        tok, talk = self.lm.tokenizer, self.conversation
        forgotten = talk.forgotten if talk else 0
        ids = tok.document_ids(text) if talk is None else talk.prompt(text)
        if talk is not None and talk.forgotten > forgotten:
            print("(the conversation is longer than the model's context: its beginning is forgotten)", file=sys.stderr)
        said: list[int] = []
        parts: list[str] = []
        with interruptible() as stopped:
            try:
                for piece in self._pieces(ids, said):
                    parts.append(piece)
                    print(printable(piece), end="", flush=True)
                    if stopped.is_set():
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                print(" (stopped)", end="")
        print()
        self.turn += 1
        if talk is not None:
            talk.answered(text, "".join(parts), said)

    def _pieces(self, ids: list[int], said: list[int]) -> Iterator[str]:
        c, seed = self.c, self.c.seed + self.turn
        stops = self.lm.tokenizer.stop_ids
        if self.tools is None:
            more = {"repetition_penalty": c.repetition_penalty} if c.repetition_penalty != 1 else {}
            yield from self.lm.engine.stream(ids, c.max_new_tokens, self.temperature, c.top_k, c.top_p, c.min_p, stops, seed, into=said, **more)
            return
        params = Params(c.max_new_tokens, self.temperature, c.top_k, c.top_p, c.min_p, stops, repetition_penalty=c.repetition_penalty)
        for event in self.tools.stream(ids, params, seed):
            if isinstance(event, str):
                yield event
            elif isinstance(event, ToolCall):
                print(card(event), end="", flush=True)
            else:
                said += event.ids
                if event.finish_reason not in ("stop", "length"):
                    print(f" (ended: {event.finish_reason})", end="")

    def command(self, line: str) -> bool:
        """Carry out a line that begins with /; False to leave. Raises UserError for a wrong one."""
        name, _, rest = line.partition(" ")
        rest, talk = rest.strip(), self.conversation
        if name in ("/quit", "/exit"):
            return False
        if name == "/clear" and talk is not None:
            talk.exchanges = []
            print("(the conversation is forgotten)")
        elif name == "/system" and talk is not None:
            self.conversation = self._begin(rest or None)
            print("(system message set; a new conversation begins)" if rest else "(no system message; a new conversation begins)")
        elif name == "/temp" and rest:
            try:
                Params(temperature=float(rest))
            except ValueError:
                raise UserError(f"{rest!r} is no number", hint="/temp 0.7") from None
            self.temperature = float(rest)
            print(f"(temperature {self.temperature:g})")
        elif name == "/save" and rest and talk is not None:
            try:
                write_json_atomic(Path(rest), {"messages": talk.messages()})
            except OSError as error:
                raise UserError(f"{rest} could not be written: {error.strerror}") from None
            print(f"(wrote {rest})")
        else:
            print(HELP)
        return True


def run(c: ChatConfig) -> int:
    """The chat; returns the exit code."""
    check_at_least(c, 1, "max_new_tokens", "threads")
    check_at_least(c, 0, "temperature", "seed")
    Params(top_k=c.top_k, top_p=c.top_p, min_p=c.min_p, repetition_penalty=c.repetition_penalty)  # raises for what cannot be
    if c.path is not None and c.model is not None:
        raise UserError(f"two models are named: {c.path} and {c.model}")
    path = find_model(c.path or c.model)
    lm = load(path, threads=c.threads, dtype=c.dtype, weights=c.weights, kv_cache_dtype=c.kv_cache_dtype, adapter=c.adapter)
    base = c.base or chat_tokens_untrained(path) or lm.tokenizer.chat is None
    chat = Chat(c, lm, base)
    if c.prompt is not None:
        chat.say(c.prompt)
        return 0
    print(f"{path}: {lm.model.config.n_params():,} parameters. /help lists commands.")
    if base:
        print("This is a base model: it continues what you type, like a document of its training data.")
    while True:
        try:
            text = read_message()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        try:
            if is_command(text):
                if not chat.command(text):
                    return 0
            elif text:
                chat.say(text[1:] if text.startswith("//") else text)
        except UserError as error:  # a message too long, a wrong command: the chat goes on
            print(error)


def is_command(text: str) -> bool:
    """Whether a message is a command: its first word is one, or / and letters only, so that a mistyped command is not sent to the model."""
    word = text.split(maxsplit=1)[0] if text else ""
    return word in COMMANDS or word == "/" or (word == text and word[:1] == "/" and word[1:].isalpha())


def read_message() -> str:
    """One message: a line, lines joined by a \\ at their ends, or a block between lines of three quotes, which the end of input ends too."""
    prompt, more = ("\n> ", "... ") if sys.stdin.isatty() else ("", "")  # nobody waits for a prompt behind a pipe
    line = input(prompt)
    lines: list[str] = []
    try:
        if line.strip() == '"""':
            while (line := input(more)).strip() != '"""':
                lines.append(line)
            return "\n".join(lines).strip()
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = input(more)
        lines.append(line)
    except EOFError:
        if not lines:
            raise
    return "\n".join(lines).strip()


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of falling into the middle of a step, which would cost the cache what it holds of the conversation."""
    stopped = threading.Event()

    def note(*_: object) -> None:
        if stopped.is_set():  # pressed twice: no token came in between
            raise KeyboardInterrupt
        stopped.set()

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread
        yield stopped
        return
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def card(call: ToolCall) -> str:
    """A tool's call and its answer, set off from the model's words."""
    lines = [f"\n┌ {call.tool} ({1000 * call.seconds:.0f} ms)", *(f"│ {line}" for line in printable(call.text).strip().splitlines()), "├ answer" if not call.failed else "├ failed"]
    return "\n".join([*lines, *(f"│ {line}" for line in printable(call.answer).strip().splitlines()), "└\n"])


def printable(text: str) -> str:
    """Without control characters: a model's words must not move the cursor or recolour the terminal."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable() or ord(c) > 159)
