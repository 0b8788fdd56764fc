"""`freedive synthesize`: instruction data from seeds, written by a model of one's own or behind an OpenAI-compatible address.

Three ways: `self-instruct` grows new instructions from examples and answers them (Wang et al., arXiv:2212.10560); `dialogue` has one model play
the user and the assistant in turn (UltraChat, arXiv:2305.14233); `answers` only answers what is given. The assistant may be given a labeller's
sheet (--persona), which stays out of the rows: whoever is trained on them behaves like that labeller without being told to.

OUT/sft.jsonl is ready for `freedive sft`: `messages`, and in `meta` where each came from. OUT/rejected.jsonl says what was dropped and why. An
interrupted run goes on after the last round of requests, and writes what it would have written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from freedive.data.texts import iter_rows
from freedive.eval.asker import Message, OurModel, Service
from freedive.inference import load
from freedive.inference.load import DTYPE_HELP, WEIGHTS_HELP
from freedive.runs import Artefact, UserError, check_at_least, json_line, option, progress, stage
from freedive.sft.labels.guidelines import guidelines_hash, read_guidelines
from freedive.tasks.draw import Draw

from . import filters, prompts
from .novelty import Pool, words
from .seeds import Seed, instruction, read_seeds

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
    generator: str = option(help="who writes: a model's folder or file, or the address of an OpenAI-compatible service (its key in OPENAI_API_KEY)")
    service_model: str = option("", "the model's name at that service")
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
    check_at_least(c, 1, "threads")
    seeds = read_seeds(c.seeds)
    persona, user_persona = (read_guidelines(p) if p else "" for p in (c.persona, c.user_persona))
    kept_out = [text for _, row in iter_rows(c.keep_out) if (text := instruction(row))] if c.keep_out else []
    remote = c.generator.startswith(("http://", "https://"))
    writer: Service | OurModel = (
        Service(c.generator, c.service_model) if remote else OurModel(load(Path(c.generator), threads=c.threads, dtype=c.dtype, weights=c.weights))
    )
    if c.dry_run:
        print(f"would have {c.generator} write {_wanted(c, seeds):,} rows from {len(seeds):,} seeds to {c.out}")
        return c.out
    inputs = {
        "seeds": c.seeds,
        "generator": None if remote else Path(c.generator),
        "persona": c.persona,
        "user_persona": c.user_persona,
        "keep_out": c.keep_out,
    }
    with stage("synthesize", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if artefact.done:
            print(f"{c.out} is finished already: nothing to do")
            return artefact.out
        _Run(c, artefact, writer, seeds, persona, user_persona, kept_out).all()
    print(f"wrote {c.out / 'sft.jsonl'}; to learn it: freedive sft --model MODEL --data {c.out / 'sft.jsonl'}")
    return artefact.out


def _wanted(c: SynthesizeConfig, seeds: Sequence[Seed]) -> int:
    return c.rows or (100 if c.kind == "self-instruct" else len(seeds))


class _Run:
    """`round` counts batches of requests; rows written before a stop are read back from the file."""

    def __init__(
        self,
        c: SynthesizeConfig,
        artefact: Artefact,
        writer: Service | OurModel,
        seeds: list[Seed],
        persona: str,
        user_persona: str,
        kept_out: list[str],
    ):
        self.c, self.artefact, self.writer, self.seeds = c, artefact, writer, seeds
        self.persona, self.user_persona = persona, user_persona
        state = artefact.resume or {}
        self.round = int(state.get("round", 0))
        self.counts: Counter[str] = Counter(state.get("counts", {}))
        written = int(state.get("written", 0))
        self.made: list[str] = []  # instructions of the rows written
        if written:
            lines = (artefact.work / "sft.jsonl").read_text(encoding="utf-8", errors="surrogatepass").splitlines()[:written]
            self.made = [instruction(json.loads(line)) for line in lines]
        self.examples = [s for s in seeds if len(words(s.text)) <= LONGEST_EXAMPLE] or seeds
        self.kept_out = Pool(kept_out)
        self.pool = Pool([*(s.text for s in seeds), *self.made])
        self.turns = c.turns or (3 if c.kind == "dialogue" else 1)
        self.common = {"kind": c.kind, "generator": c.service_model or Path(c.generator).name, "prompts": prompts.VERSION, "temperature": c.temperature,
                       **({"persona": guidelines_hash(persona)} if persona else {}), **({"user_persona": guidelines_hash(user_persona)} if user_persona else {})}  # fmt: skip

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
            human = [(s.id, s.text) for s in draw.sample(self.examples, min(HUMAN + MADE - len(made), len(self.examples)))]
            examples = draw.shuffled([*human, *made])
            shown.append([name for name, _ in examples])
            asked.append(prompts.new_tasks([text for _, text in examples], ASKED))
        replies = self._ask(asked, list(part), min(self.c.max_new_tokens, 64 * ASKED), 0)
        fresh, found = Pool(), []
        for i, names, reply in zip(part, shown, replies):
            for k, text in enumerate(filters.items(reply)[:ASKED]):
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

    def _ask(self, conversations: list[list[Message]], numbers: Sequence[int], most_tokens: int, step: int) -> list[str]:
        seeds = [((self.c.seed << 40) + (n << 8) + step) % 2**52 for n in numbers]
        return [texts[0] for texts in self.writer.ask(conversations, temperature=self.c.temperature, max_new_tokens=most_tokens, seeds=seeds)]

    def _fits(self, messages: list[Message]) -> bool:
        """Whether the model has room for them and half of the longest answer; a service is believed to have."""
        if isinstance(self.writer, Service):
            return True
        try:
            return len(self.writer.ids(messages)) + self.c.max_new_tokens // 2 <= self.writer.lm.model.config.max_positions
        except UserError:
            return False

    def _converse(self, openings: Sequence[tuple[str, dict[str, Any], int]]) -> None:
        """Answers and turns, all conversations a step at a time; a row is what was good before the first fault."""
        c = self.c
        talks: list[list[Message]] = [[{"role": "user", "content": text}] for text, _, _ in openings]
        ended: dict[int, str] = {}
        for turn in range(self.turns):
            alive = [i for i in range(len(talks)) if i not in ended]
            if turn:
                ended |= {i: "no room in the context" for i in alive if not self._fits(prompts.next_turn(talks[i], self.user_persona))}
                alive = [i for i in alive if i not in ended]
            if turn and alive:
                said = self._ask([prompts.next_turn(talks[i], self.user_persona) for i in alive], [openings[i][2] for i in alive], 96, 2 * turn)
                for i, reply in zip(alive, said):
                    next_words = prompts.users_words(reply)
                    if fault := filters.turn_fault(next_words, [str(m["content"]) for m in talks[i]]):
                        ended[i] = f"turn: {fault}"
                    else:
                        talks[i].append({"role": "user", "content": next_words})
                alive = [i for i in alive if i not in ended]
            for i in alive:
                if not self._fits(prompts.answer(talks[i], self.persona)):
                    ended[i] = "no room in the context"
                    if turn:
                        talks[i].pop()
            alive = [i for i in alive if i not in ended]
            if not alive:
                break
            said = self._ask([prompts.answer(talks[i], self.persona) for i in alive], [openings[i][2] for i in alive], c.max_new_tokens, 2 * turn + 1)
            for i, reply in zip(alive, said):
                if fault := filters.answer_fault(str(talks[i][-1]["content"]), reply, c.max_new_tokens, c.refusals):
                    ended[i] = fault
                    if turn:
                        talks[i].pop()  # the question that it could not answer
                else:
                    talks[i].append({"role": "assistant", "content": reply})
        for i, ((text, source, number), messages) in enumerate(zip(openings, talks)):
            if len(messages) < 2:
                self._drop(ended[i], instruction=text)
                continue
            if i in ended:
                self.counts[f"shortened, {ended[i]}"] += 1
            self.made.append(text)
            if c.kind == "self-instruct":
                self.pool.add(text)
            self.artefact.append("sft.jsonl", json_line({"messages": messages, "meta": {**self.common, **source, "number": number}}))
