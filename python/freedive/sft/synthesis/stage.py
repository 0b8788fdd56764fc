"""`freedive synthesize`: instruction data from seeds, written by a model of one's own or behind an OpenAI-compatible address.

Three ways: `self-instruct` grows new instructions from examples and answers them (Wang et al., arXiv:2212.10560); `dialogue` has one model, or two, play
the user and the assistant in turn (UltraChat, arXiv:2305.14233); `answers` only answers what is given. The assistant may be given a labeller's
sheet (--persona), which stays out of the rows: whoever is trained on them behaves like that labeller without being told to.

OUT/sft.jsonl is ready for `freedive sft`: `messages`, and in `meta` where each came from. OUT/rejected.jsonl says what was dropped and why. An
interrupted run goes on after the last round of requests, and writes what it would have written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from freedive.eval.asker import KEY, Message, OurModel, Reply, Service
from freedive.inference import load
from freedive.inference.load import DTYPE_HELP, WEIGHTS_HELP
from freedive.runs import Artefact, UserError, check_at_least, json_line, option, progress, stage
from freedive.sft.labels.guidelines import guidelines_hash, read_guidelines
from freedive.tasks.draw import Draw

from . import filters, prompts
from .novelty import Answers, Pool, words
from .seeds import Seed, read_seeds

ROUND = 32  # requests between two checkpoints
ALIKE = 0.7  # ROUGE-L from which on two instructions are one (Self-Instruct)
HUMAN, MADE = 6, 2  # examples of each request: seeds, and rows made before
LONGEST_EXAMPLE = 60  # words; eight long ones leave a small model no room
ASKED = 3  # new instructions of each request
STREAM = 95


@dataclass(frozen=True)
class SynthesizeConfig:
    """Grow conversations from seeds."""

    seeds: Path = option(
        help="what to begin with: a text file, one instruction a line, or JSONL with 'instruction', 'prompt', 'question' or 'messages'",
        positional=True,
    )
    generator: str = option(help="who writes: a model's folder or file, or the address of an OpenAI-compatible service")
    service_model: str = option("", "the model's name at that service, or at both")
    api_key_env: str = option(KEY, "environment variable that holds the service's key")
    parallel: int = option(8, "requests at a time to a service", hash=False)
    user: str = option("", "who plays the user of a dialogue: a folder, file or address (default: --generator)")
    kind: Literal["self-instruct", "dialogue", "answers"] = option(
        "self-instruct", "new instructions with answers; conversations of several turns; answers to the seeds themselves"
    )
    out: Path = option(Path("runs/synthesis"), "folder to write")
    rows: int = option(0, "conversations to make (0: 100 with self-instruct, else one for each seed)")
    turns: int = option(0, "answers in a conversation (0: 3 with dialogue, else 1)")
    persona: Path | None = option(None, "a labeller's sheet: the assistant's system message while it writes, left out of the rows")
    user_persona: Path | None = option(None, "the same for the simulated user")
    keep_out: Path | None = option(None, "JSONL of questions that no instruction may be like: an evaluation's")
    refusals: bool = option(False, "keep answers that decline")
    tries: int = option(1, "answers drawn until one is good")
    min_words: int = option(0, "fewest words of an answer: with the next three, a labeller's rules that can be checked")
    max_words: int = option(0, "most words of an answer (0: any number)")
    require: tuple[str, ...] = option((), "regular expressions that are found in every answer")
    forbid: tuple[str, ...] = option((), "regular expressions that are found in none")
    temperature: float = option(0.7, "of instructions, answers and turns")
    max_new_tokens: int = option(256, "longest answer, in tokens")
    max_requests: int = option(0, "with self-instruct: give up after so many requests for instructions (0: 20 for each row)")
    weights: str = option("auto", WEIGHTS_HELP)
    dtype: str = option("float32", DTYPE_HELP)
    seed: int = option(0, "of everything drawn")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "check the input, load the model, and stop")


def run(c: SynthesizeConfig) -> Path:
    """Write; returns the folder. Raises UserError for input that cannot be used, and for a service that does not answer."""
    check_at_least(c, 0, "rows", "turns", "max_requests", "seed", "temperature")
    check_at_least(c, 8, "max_new_tokens")
    check_at_least(c, 0, "min_words", "max_words")
    check_at_least(c, 1, "threads", "parallel", "tries")
    if c.tries > 1 and not c.temperature:
        raise UserError(f"tries is {c.tries} and temperature 0: all tries would be the same answer", hint="--temperature 0.7")
    if c.max_words and c.max_words < c.min_words:
        raise UserError(f"min_words is {c.min_words} and max_words {c.max_words}: no answer is both")
    if c.user and c.kind != "dialogue":
        raise UserError(f"--user plays the user of a dialogue; --kind {c.kind} has none")
    rules = filters.Rules(c.min_words, c.max_words, _patterns("require", c.require), _patterns("forbid", c.forbid), c.refusals)
    seeds = read_seeds(c.seeds)
    persona, user_persona = (read_guidelines(p) if p else "" for p in (c.persona, c.user_persona))
    kept_out = [seed.text for seed in read_seeds(c.keep_out)] if c.keep_out else []
    writer = _writer(c, c.generator)
    user = _writer(c, c.user) if c.user else writer
    if c.dry_run:
        print(f"would have {c.generator} write {_wanted(c, seeds):,} rows from {len(seeds):,} seeds to {c.out}")
        return c.out
    inputs = {
        "seeds": c.seeds,
        "generator": None if _remote(c.generator) else Path(c.generator),
        "user": None if not c.user or _remote(c.user) else Path(c.user),
        "persona": c.persona,
        "user_persona": c.user_persona,
        "keep_out": c.keep_out,
    }
    with stage("synthesize", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if artefact.done:
            print(f"{c.out} is finished already: nothing to do")
            return artefact.out
        _Run(c, artefact, writer, user, seeds, persona, user_persona, kept_out, rules).all()
    print(f"wrote {c.out / 'sft.jsonl'}; to learn it: freedive sft --model MODEL --data {c.out / 'sft.jsonl'}")
    return artefact.out


def _wanted(c: SynthesizeConfig, seeds: Sequence[Seed]) -> int:
    return c.rows or (100 if c.kind == "self-instruct" else len(seeds))


Writer = Service | OurModel


def _remote(who: str) -> bool:
    return who.startswith(("http://", "https://"))


def _writer(c: SynthesizeConfig, who: str) -> Writer:
    if _remote(who):
        return Service(who, c.service_model, parallel=c.parallel, key=c.api_key_env)
    return OurModel(load(Path(who), threads=c.threads, dtype=c.dtype, weights=c.weights))


def _patterns(name: str, given: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    try:
        return tuple(re.compile(pattern, re.MULTILINE) for pattern in given)
    except re.error as error:
        raise UserError(f"--{name} {error.pattern!r} is no regular expression: {error}") from None


def _seed(seed: int, number: int, step: int) -> int:
    """31 bits, which every service takes, of all three."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {step}".encode()).digest()[:4], "little") >> 1


class _Run:
    """`round` counts batches of requests; rows written before a stop are read back from the file."""

    def __init__(
        self,
        c: SynthesizeConfig,
        artefact: Artefact,
        writer: Writer,
        user: Writer,
        seeds: list[Seed],
        persona: str,
        user_persona: str,
        kept_out: list[str],
        rules: filters.Rules,
    ):
        self.c, self.artefact, self.writer, self.user, self.seeds = c, artefact, writer, user, seeds
        self.persona, self.user_persona, self.rules = persona, user_persona, rules
        state = artefact.resume or {}
        self.round = int(state.get("round", 0))
        self.counts: Counter[str] = Counter(state.get("counts", {}))
        written = int(state.get("written", 0))
        self.made: list[str] = []  # instructions of the rows written
        self.answers = Answers()  # to them
        if written:
            # not splitlines(): JSON has U+2028 and its like within a line
            lines = (artefact.work / "sft.jsonl").read_text(encoding="utf-8", errors="surrogatepass").split("\n")[:written]
            found = [json.loads(line)["messages"] for line in lines]
            self.made = [str(messages[0]["content"]) for messages in found]
            self.answers = Answers(str(messages[1]["content"]) for messages in found)
        self.examples = [s for s in seeds if len(words(s.task)) <= LONGEST_EXAMPLE] or seeds
        self.kept_out = Pool(kept_out)
        self.pool = Pool([*(s.task for s in seeds), *self.made])
        self.turns = c.turns or (3 if c.kind == "dialogue" else 1)
        self.common = {"kind": c.kind, "generator": self._name(c.generator), "prompts": prompts.VERSION, "temperature": c.temperature,
                       **({"user": self._name(c.user)} if c.user else {}),
                       **({"persona": guidelines_hash(persona)} if persona else {}), **({"user_persona": guidelines_hash(user_persona)} if user_persona else {})}  # fmt: skip

    def _name(self, who: str) -> str:
        return (self.c.service_model or who) if _remote(who) else Path(who).name

    def all(self) -> None:
        c, wanted = self.c, _wanted(self.c, self.seeds)
        most = (c.max_requests or 20 * wanted) if c.kind == "self-instruct" else wanted
        with progress.bar(wanted, "synthesize") as bar:
            bar.advance(len(self.made) if c.kind == "self-instruct" else min(wanted, self.round * ROUND))
            while self.round * ROUND < most and (c.kind != "self-instruct" or len(self.made) < wanted):
                before, part = len(self.made), range(self.round * ROUND, min(most, (self.round + 1) * ROUND))
                openings = self._instructions(part) if c.kind == "self-instruct" else self._given(part)
                self._converse(openings[: wanted - len(self.made)] if c.kind == "self-instruct" else openings)
                self.round += 1
                self.artefact.checkpoint({"round": self.round, "written": len(self.made), "counts": dict(self.counts)})
                bar.advance(len(self.made) - before if c.kind == "self-instruct" else len(part))
        if not self.made:
            raise UserError(f"not one row was left: {self._told()}", hint="another --generator, or other seeds")
        if len(self.made) < wanted and c.kind == "self-instruct":
            print(f"{most:,} requests gave {len(self.made):,} rows of {wanted:,}")
        self.artefact.summary(rows=len(self.made), **{f"dropped/{reason.replace(' ', '_')}": n for reason, n in sorted(self.counts.items())})
        print(f"{len(self.made):,} rows kept; dropped: {self._told()}")

    def _told(self) -> str:
        return ", ".join(f"{n:,} {reason}" for reason, n in self.counts.most_common()) or "none"

    def _drop(self, reason: str, **what: Any) -> None:
        self.counts[reason] += 1
        self.artefact.append("rejected.jsonl", json_line({"reason": reason, **what}))

    # ---- openings: (instruction, provenance, seed of its sampling) ---------------------------------------------------

    def _given(self, part: range) -> list[tuple[str, dict[str, Any], int]]:
        """The seeds themselves; again from the first one, sampled anew, where more rows are wanted."""
        found = []
        for i in part:
            seed = self.seeds[i % len(self.seeds)]
            if self.kept_out.nearest(seed.text, ALIKE) >= ALIKE:
                self._drop("like what is kept out", instruction=seed.text)
            else:
                found.append((seed.text, {"seeds": [seed.id]}, i))
        return found

    def _instructions(self, part: range) -> list[tuple[str, dict[str, Any], int]]:
        """New ones, each unlike the seeds, the rows before and the others of this round."""
        asked, shown = [], []
        for i in part:
            draw = Draw((self.c.seed << 32) + i, STREAM)
            short = [n for n, text in enumerate(self.made) if len(words(text)) <= LONGEST_EXAMPLE]
            made = [(f"made:{n}", self.made[n]) for n in draw.sample(short, min(MADE, len(short)))]
            human = [(s.id, s.task) for s in draw.sample(self.examples, min(HUMAN + MADE - len(made), len(self.examples)))]
            examples = draw.shuffled([*human, *made])
            shown.append([name for name, _ in examples])
            asked.append(prompts.new_tasks([text for _, text in examples], ASKED))
        replies = self._ask(asked, list(part), min(self.c.max_new_tokens, 64 * ASKED), 0)
        fresh, found = Pool(), []
        for i, names, reply in zip(part, shown, replies):
            if not (texts := filters.items(reply.text, reply.finish == "length")[:ASKED]):
                self._drop("no instruction in the reply", text=reply.text)
            for k, text in enumerate(texts):
                near = 0.0
                reason = filters.instruction_fault(text)
                if not reason and self.kept_out.nearest(text, ALIKE) >= ALIKE:
                    reason = "like what is kept out"
                if not reason and (near := max(self.pool.nearest(text, ALIKE), fresh.nearest(text, ALIKE))) >= ALIKE:
                    reason = "like one there is"
                if reason:
                    self._drop(reason, instruction=text)
                    continue
                fresh.add(text)
                found.append((text, {"seeds": names, "rouge_l": round(near, 3)}, i * ASKED + k))
        return found

    # ---- conversations -----------------------------------------------------------------------------------------------

    def _ask(self, conversations: list[list[Message]], numbers: Sequence[int], most_tokens: int, step: int, who: Writer | None = None) -> list[Reply]:
        seeds = [_seed(self.c.seed, n, step) for n in numbers]
        return (who or self.writer).replies(conversations, temperature=self.c.temperature, max_new_tokens=most_tokens, seeds=seeds)

    def _answers(self, talks: list[list[Message]], numbers: Sequence[int], turn: int) -> list[tuple[str, str]]:
        """(answer, fault) for each: of --tries the first that is good, else what the last one was."""
        found: dict[int, tuple[str, str]] = {}
        for attempt in range(self.c.tries):
            again = [i for i in range(len(talks)) if i not in found or found[i][1]]
            if not again:
                break
            step = 2 * turn + 1 + 1000 * attempt
            for i, reply in zip(again, self._ask([prompts.answer(talks[i], self.persona) for i in again], [numbers[i] for i in again], self.c.max_new_tokens, step)):
                found[i] = (reply.text, filters.answer_fault(str(talks[i][-1]["content"]), reply, self.rules))
        return [found[i] for i in range(len(talks))]

    def _fits(self, messages: list[Message], who: Writer) -> bool:
        """Whether the model has room for them and half of the longest answer; a service says so itself."""
        if isinstance(who, Service):
            return True
        try:
            return len(who.ids(messages)) + self.c.max_new_tokens // 2 <= who.lm.model.config.max_positions
        except UserError:
            return False

    def _converse(self, openings: Sequence[tuple[str, dict[str, Any], int]]) -> None:
        """Answers and turns, all conversations a step at a time; a row is what was good before the first fault."""
        c = self.c
        talks: list[list[Message]] = [[{"role": "user", "content": text}] for text, _, _ in openings]
        ended: dict[int, str] = {}
        dropped: dict[int, str] = {}  # answers that were no good
        for turn in range(self.turns):
            alive = [i for i in range(len(talks)) if i not in ended]
            if turn:
                ended |= {i: "no room in the context" for i in alive if not self._fits(prompts.next_turn(talks[i], self.user_persona), self.user)}
                alive = [i for i in alive if i not in ended]
            if turn and alive:
                said = self._ask([prompts.next_turn(talks[i], self.user_persona) for i in alive], [openings[i][2] for i in alive], 96, 2 * turn, self.user)
                for i, reply in zip(alive, said):
                    next_words = prompts.users_words(reply.text)
                    cut_off = "cut off" if reply.finish == "length" and next_words and reply.text.endswith(next_words) else ""
                    if fault := cut_off or filters.turn_fault(next_words, [str(m["content"]) for m in talks[i]]):
                        ended[i] = f"turn: {fault}"
                    else:
                        talks[i].append({"role": "user", "content": next_words})
                alive = [i for i in alive if i not in ended]
            for i in alive:
                if not self._fits(prompts.answer(talks[i], self.persona), self.writer):
                    ended[i] = "no room in the context"
                    if turn:
                        talks[i].pop()
            alive = [i for i in alive if i not in ended]
            if not alive:
                break
            for i, (text, fault) in zip(alive, self._answers([talks[i] for i in alive], [openings[i][2] for i in alive], turn)):
                if fault:
                    ended[i], dropped[i] = fault, text
                    if turn:
                        talks[i].pop()  # the question that it could not answer
                else:
                    talks[i].append({"role": "assistant", "content": text})
        for i, ((text, source, number), messages) in enumerate(zip(openings, talks)):
            if len(messages) < 2:
                self._drop(ended[i], instruction=text, **({"answer": dropped[i]} if i in dropped else {}))
                continue
            if c.kind == "self-instruct" and self.answers.nearest(str(messages[1]["content"])) >= ALIKE:
                self._drop("answer like one there is", instruction=text)
                continue
            if c.kind == "self-instruct":
                self.answers.add(str(messages[1]["content"]))
            if i in ended:
                self.counts[f"shortened, {ended[i]}"] += 1
            self.made.append(text)
            if c.kind == "self-instruct":
                self.pool.add(text)
            self.artefact.append("sft.jsonl", json_line({"messages": messages, "meta": {**self.common, **source, "number": number}}))
