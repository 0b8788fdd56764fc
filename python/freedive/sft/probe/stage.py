"""`freedive probe`: what does a model know of its training data, and the conversations that teach it to say when it does not (talk 3.1).

The six steps in order, each writing one JSONL file into OUT; an interrupted run goes on in the middle of a step. What comes out is ready
for `freedive sft`: OUT/sft.jsonl. Questions about a part of the names (--hold-out) are asked too but never taught: OUT/held_out.jsonl is
for `freedive eval hallucination`, before and after.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freedive.data.texts import is_artefact, iter_documents, iter_rows
from freedive.eval.asker import OurModel, asker
from freedive.eval.judge import Judge
from freedive.inference import load
from freedive.inference.load import DTYPE_HELP, WEIGHTS_HELP
from freedive.runs import Artefact, UserError, check_at_least, json_line, option, progress, read_json, stage
from freedive.tasks.draw import Draw

from . import agreement, questions, refusals, snippets

BATCH = 128  # questions between two checkpoints
CLASSES = {refusals.ANSWER: "known", refusals.REFUSE: "unknown", refusals.DROP: "unsure"}
MIX_STREAM = 92
REUSED = ("questions", "samples", "correctness", "informativeness")  # files taken over from an earlier probe


@dataclass(frozen=True)
class ProbeConfig:
    """Find out what a model knows, and write the refusals that it should learn."""

    model: Path = option(help="the model to be probed", positional=True)
    data: Path | None = option(None, "what it was trained on: a folder of `freedive data`, or text; questions are written about passages of it")
    questions: Path | None = option(None, 'your own questions, JSONL: {"question", "answer", "aliases", "entity"}; in place of --data')
    reuse: Path | None = option(None, "in place of both: an earlier probe of this model, whose questions, samples and judgements are taken over; only what is decided and written is new")
    out: Path = option(Path("runs/probe"), "folder to write")
    templates: Path | None = option(None, 'with --data: JSONL of patterns: {"pattern": "(?P<place>...) ...", "questions": ["... {place}?"], "answer": "{...}", "entity": "{place}"}')
    writer: str = option("self", "with --data and no templates, who writes the questions: self, a model's folder or file, or the address of an OpenAI-compatible service")
    judge: str = option("rule", "who judges correctness and informativeness: rule, self, a model's folder or file, or an address")
    service_model: str = option("", "name of the model at the service of --writer or --judge")
    snippets: int = option(1000, "passages drawn, evenly over how often their names occur")
    snippet_words: int = option(80, "words of a passage, about")
    samples: int = option(8, "answers drawn for each question, at --temperature")
    temperature: float = option(1.0, "of these samples; one more answer, the likeliest, is kept for comparison")
    max_new_tokens: int = option(32, "longest answer, in tokens")
    base: bool = option(False, "a base model, which knows no conversations: it is asked in plain text")
    system: str = option("", "system message before each question")
    agree_with: tuple[Path, ...] = option((), "other models or checkpoints that answer too; agreement.jsonl then compares all")
    most_correct: float = option(0.25, "refuse where at most this share of the samples is right ...")
    least_informative: float = option(0.75, "... and at least this share commits itself to an answer")
    least_known: float = option(0.75, "teach the model's own answer where at least this share is right")
    hold_out: float = option(0.3, "part of the entities (questions without one: of the questions) kept for evaluation, never taught")
    keep_out: Path | None = option(None, 'JSONL of questions or {"entity"}: what they are about is never taught')
    refusals: Path | None = option(None, "text file of refusals, one a line, {entity} for the name (default: thirteen of ours)")
    wordings: int = option(4, "wordings of a question that are taught, where it has several")
    answers_per_refusal: float = option(2.0, "at most so many answers taught for each refusal")
    refusals_per_answer: float | None = option(None, "at most so many refusals for each answer, within each form of question: a model that knows little is else taught to refuse that form (default: all)")
    replay: Path | None = option(None, "conversations to mix in, so that nothing else is forgotten")
    replay_per_refusal: float = option(4.0, "so many of them for each refusal")
    random_refusals: bool = option(False, "a control experiment: attach the refusals to questions drawn at random, known or not")
    weights: str = option("auto", WEIGHTS_HELP)
    dtype: str = option("float32", DTYPE_HELP)
    seed: int = option(0, "of everything drawn")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "check the input and the model, and stop")


def run(c: ProbeConfig) -> Path:
    """Probe; returns the folder written. Raises UserError for input that cannot be used."""
    _check(c)
    templates = questions.read_templates(c.templates) if c.templates else []
    rows = questions.from_rows(c.questions) if c.questions else []
    phrases = refusals.read_phrases(c.refusals)
    if c.reuse:
        _check_reuse(c.reuse)
    own = OurModel(load(c.model, threads=c.threads, dtype=c.dtype, weights=c.weights), c.base)
    if c.dry_run:
        asked = f"{len(rows):,} questions" if rows else f"what {c.reuse} found" if c.reuse else f"questions about {c.snippets:,} passages of {c.data}"
        print(f"would probe {c.model} with {asked} and write {c.out}")
        return c.out
    inputs = {"model": c.model, "data": c.data, "questions": c.questions, "templates": c.templates, "reuse": c.reuse, "keep_out": c.keep_out, "refusals": c.refusals, "replay": c.replay,
              "writer": _path(c.writer), "judge": _path(c.judge), **{f"agree_with_{i}": path for i, path in enumerate(c.agree_with)}}  # fmt: skip
    with stage("probe", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if artefact.done:
            print(f"{c.out} is finished already: nothing to do")
            return artefact.out
        if c.reuse and read_json(c.reuse / "run.json")["inputs"]["model"] != artefact.inputs["model"]:
            raise UserError(f"{c.reuse} is what another model said, or {c.model} has changed since", hint="--reuse is an earlier probe of this model")
        _Probe(c, artefact, own).all(templates, rows, phrases)
    return artefact.out


def _check(c: ProbeConfig) -> None:
    if sum(given is not None for given in (c.data, c.questions, c.reuse)) != 1:
        raise UserError("give one of --data (documents to ask about), --questions (your own) and --reuse (an earlier probe)", hint="freedive probe runs/assistant --data runs/data --out runs/probe")
    if c.templates and c.data is None:
        raise UserError("--templates are patterns over documents: give --data too")
    check_at_least(c, 1, "snippets", "snippet_words", "samples", "max_new_tokens", "wordings", "threads")
    check_at_least(c, 0, "answers_per_refusal", "refusals_per_answer", "replay_per_refusal", "seed")
    for name in ("most_correct", "least_informative", "least_known", "hold_out"):
        if not 0 <= getattr(c, name) <= 1:
            raise UserError(f"{name} is {getattr(c, name)}; it is a share, 0 to 1")
    if c.most_correct >= c.least_known:
        raise UserError(f"most_correct is {c.most_correct} and least_known {c.least_known}: a question would be known and unknown at once")
    if c.temperature <= 0:
        raise UserError(f"temperature is {c.temperature}; samples that are all the same tell nothing: it must be above 0")


def _check_reuse(folder: Path) -> None:
    missing = [name for name in REUSED if not (folder / f"{name}.jsonl").is_file()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}.jsonl", hint="--reuse is a folder that `freedive probe` has finished")


def _path(who: str) -> Path | None:
    """The model behind --writer or --judge, which is then one of the run's inputs."""
    return None if who in ("self", "rule") or who.startswith(("http://", "https://")) else Path(who)


class _Probe:
    """The steps of one run. `self.at` counts rows done of each step; what an earlier start wrote is read from its files."""

    def __init__(self, c: ProbeConfig, artefact: Artefact, own: OurModel):
        self.c, self.artefact, self.own = c, artefact, own
        state = artefact.resume or {}
        self.at: dict[str, int] = state.get("at", {})
        self.counts: Counter[str] = Counter(state.get("counts", {}))
        self.judge = Judge(unclear=state.get("unclear", 0))

    def all(self, templates: Sequence[questions.Template], rows: list[dict[str, Any]], phrases: Sequence[str]) -> None:
        c = self.c
        if c.reuse and not self.at:
            for name in REUSED:
                text = (c.reuse / f"{name}.jsonl").read_text(encoding="utf-8", errors="surrogatepass")
                self.artefact.append(f"{name}.jsonl", text)
                self.at[name] = text.count("\n")
            self._done("questions", self.at["questions"])
        asked = self._questions(templates, rows)
        samples = self._step("samples", asked, self._sample)
        self.judge.asker = None if c.judge == "rule" else asker(c.judge, c.service_model, self.own, c.threads)
        everything = list(zip(asked, samples))
        correct = self._step("correctness", everything, self._judged(self.judge.correct, "correct"))
        informative = self._step("informativeness", everything, self._judged(self.judge.informative, "informative"))
        decided = [self._decided(*row) for row in zip(asked, samples, correct, informative)]
        self._agreement(decided)
        self._write(decided, phrases)
        self.artefact.summary(judge_unclear=self.judge.unclear)
        self._report(decided)

    # ---- steps -----------------------------------------------------------------------------------------------------

    def _questions(self, templates: Sequence[questions.Template], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Steps 1 and 2."""
        c = self.c
        found: Iterator[dict[str, Any]]
        if self.at.get("questions"):
            return self._written("questions")
        if rows:
            found = iter(rows)
        else:
            chosen = self._snippets(templates)
            if templates:
                found = questions.from_templates(templates, chosen)
            else:
                who = asker(c.writer, c.service_model, self.own, c.threads)
                found = (row for row, _ in self._batches("written", chosen, lambda part: list(questions.written(who, part))))
        kept: dict[tuple[str, str, str], dict[str, Any]] = {}
        for row in found:
            reason = questions.fault(row)
            key = (row["entity"], row["questions"][0], row["answer"])
            if reason or key in kept:
                self.counts[reason or "asked before"] += 1
                continue
            kept[key] = {"id": len(kept), **row}
        if not kept:
            told = ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common()) or "no passage speaks of a name, or no template matches"
            raise UserError(f"not one question was left: {told}", hint="give --templates or --questions, or a better --writer")
        for row in kept.values():
            self.artefact.append("questions.jsonl", json_line(row))
        self._done("questions", len(kept))
        return list(kept.values())

    def _snippets(self, templates: Sequence[questions.Template]) -> list[dict[str, Any]]:
        c = self.c
        assert c.data is not None
        if self.at.get("snippets"):
            return self._written("snippets")
        split = "train" if is_artefact(c.data) else None
        names: Callable[[str], list[str]] = (lambda text: questions.entities(templates, text)) if any(t.entity for t in templates) else snippets.names
        counts = snippets.frequencies(iter_documents(c.data, split), names, c.snippet_words)
        chosen = snippets.choose(iter_documents(c.data, split), names, counts, c.snippets, c.snippet_words, c.seed)
        for row in chosen:
            self.artefact.append("snippets.jsonl", json_line(row))
        self.at["snippets"] = len(chosen)  # saved with the next checkpoint: it is a matter of seconds
        return chosen

    def _prompts(self, rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        system = [{"role": "system", "content": self.c.system}] if self.c.system else []
        return [[*system, {"role": "user", "content": row["questions"][0]}] for row in rows]

    def _sample(self, part: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Step 3: K samples and the likeliest answer, closed book; what other models say, too."""
        c, prompts = self.c, self._prompts(part)
        seeds = [(c.seed << 32) + row["id"] for row in part]
        likeliest = self.own.ask(prompts, max_new_tokens=c.max_new_tokens, seeds=[0] * len(part))
        drawn = self.own.ask(prompts, n=c.samples, temperature=c.temperature, max_new_tokens=c.max_new_tokens, seeds=seeds)
        return [{"id": row["id"], "question": row["questions"][0], "greedy": greedy[0], "samples": many} for row, greedy, many in zip(part, likeliest, drawn)]

    def _judged(self, judge: Callable[[dict[str, Any], Sequence[str]], list[bool]], key: str) -> Callable[[list[Any]], list[dict[str, Any]]]:
        """Steps 4 and 5."""

        def judged(part: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
            found = []
            for row, said in part:
                greedy, *many = judge(row, [said["greedy"], *said["samples"]])
                found.append({"id": row["id"], "greedy": greedy, key: many, "share": sum(many) / len(many)})
            return found

        return judged

    def _decided(self, row: dict[str, Any], said: dict[str, Any], correct: dict[str, Any], informative: dict[str, Any]) -> dict[str, Any]:
        """Step 6, for one question."""
        c = self.c
        decision = refusals.decide(correct["correct"], informative["informative"], c.most_correct, c.least_informative, c.least_known)
        right = list(dict.fromkeys(text for text, good in zip(said["samples"], correct["correct"]) if good))
        held = refusals.is_held_out(row["entity"] or row["questions"][0], c.hold_out, c.seed)
        return {**row, "decision": decision, "right": right, "samples": said["samples"], "greedy": said["greedy"], "held_out": held,
                "correct": correct["share"], "informative": informative["share"], "greedy_correct": correct["greedy"]}  # fmt: skip

    def _agreement(self, decided: list[dict[str, Any]]) -> None:
        """The samples against each other; and the likeliest answers of several models, if there are any."""
        others = {str(path): OurModel(load(path, threads=self.c.threads), self.c.base) for path in self.c.agree_with}
        said: dict[str, list[list[str]]] = {
            name: [texts for texts, _ in self._batches(f"agreement {i}", decided, lambda part, who=model: who.ask(self._prompts(part), max_new_tokens=self.c.max_new_tokens))]  # type: ignore[misc]
            for i, (name, model) in enumerate(others.items())
        }
        share, overlap, known, across = [], [], [], []
        for number, row in enumerate(decided):
            found = agreement.agree(row["samples"], row["questions"][0])
            line = {"id": row["id"], **asdict(found), "correct": row["correct"]}
            share.append(found.agreement)
            overlap.append(found.overlap)
            known.append(row["greedy_correct"])
            if others:
                replies = [row["greedy"], *(texts[number][0] for texts in said.values())]
                line |= {"models": agreement.agree(replies, row["questions"][0]).overlap, "replies": replies}
                across.append(line["models"])
            self.artefact.append("agreement.jsonl", json_line(line))
        self.artefact.summary(agreement_auroc=agreement.auroc(share, known), overlap_auroc=agreement.auroc(overlap, known), **({"models_auroc": agreement.auroc(across, known)} if across else {}))

    def _write(self, decided: list[dict[str, Any]], phrases: Sequence[str]) -> None:
        """refusals.jsonl (every decision), sft.jsonl and held_out.jsonl."""
        c, draw = self.c, Draw(self.c.seed, MIX_STREAM)
        kept_out = {normal(row) for _, row in iter_rows(c.keep_out)} if c.keep_out else set()
        taught = [row for row in decided if not row["held_out"] and normal(row) not in kept_out]
        if c.random_refusals:
            wanted = sum(row["decision"] == refusals.REFUSE for row in taught)
            unlucky = {row["id"] for row in draw.sample(taught, wanted)}
            taught = [{**row, "decision": refusals.REFUSE if row["id"] in unlucky else refusals.ANSWER if row["right"] else refusals.DROP} for row in taught]
        chats = list(refusals.conversations(taught, phrases, c.wordings, c.answers_per_refusal, c.refusals_per_answer, c.seed))
        kinds = Counter(chat["meta"]["kind"] for chat in chats)
        if c.replay:
            old = [{**row, "meta": {**(row.get("meta") or {}), "kind": "replay"}} for _, row in iter_rows(c.replay)]
            chats += draw.sample(old, round(c.replay_per_refusal * kinds[refusals.REFUSE]))
        for chat in draw.shuffled(chats):
            self.artefact.append("sft.jsonl", json_line(chat))
        for row in decided:
            keep = ("id", "decision", "held_out", "correct", "informative", "greedy_correct", "entity", "answer", "greedy", "frequency")
            self.artefact.append("refusals.jsonl", json_line({"question": row["questions"][0], **{key: row[key] for key in keep}}))
            if row["held_out"]:
                meta = {"class": CLASSES[row["decision"]], "entity": row["entity"], "aliases": row["aliases"], "question": row["id"]}
                self.artefact.append("held_out.jsonl", json_line({"prompt": self._prompts([row])[0], "answer": row["answer"], "meta": meta}))
        self.artefact.summary(conversations=len(chats), **{f"sft_{kind}": count for kind, count in sorted(kinds.items())}, sft_replay=len(chats) - sum(kinds.values()))

    def _report(self, decided: list[dict[str, Any]]) -> None:
        told: dict[str, Counter[str]] = {}
        for row in decided:
            group = frequency_group(row["frequency"])
            told.setdefault(group, Counter())[row["decision"]] += 1
        totals = Counter(row["decision"] for row in decided)
        m = self.artefact.metrics
        self.artefact.summary(questions=len(decided), **{name: totals[name] for name in (refusals.REFUSE, refusals.ANSWER, refusals.DROP)},
                              by_frequency={group: dict(counts) for group, counts in told.items()}, rejected={k: v for k, v in sorted(self.counts.items())})  # fmt: skip
        print(f"{len(decided):,} questions: {totals[refusals.ANSWER]:,} known, {totals[refusals.REFUSE]:,} made up, {totals[refusals.DROP]:,} between")
        for group, counts in sorted(told.items(), key=lambda pair: int(pair[0].split("-")[0] or 0)):
            print(f"  names in {group:>9} passages: {counts[refusals.ANSWER]:6,} known {counts[refusals.REFUSE]:6,} made up {counts[refusals.DROP]:6,} between")
        if m.get("agreement_auroc") is not None:
            told_by = f"agreement of the samples tells right from wrong with AUROC {m['agreement_auroc']:.3f}, the words they share with {m['overlap_auroc']:.3f}"
            print(told_by + (f", the models' with {m['models_auroc']:.3f}" if m.get("models_auroc") is not None else ""))
        if self.judge.unclear:
            print(f"note: {self.judge.unclear:,} replies of the judge held no verdict")
        if not m["conversations"]:
            print("nothing to learn from: no question is consistently right, or consistently made up; --least-known and --most-correct say where these begin")
            return
        print(f"{m['conversations']:,} conversations to learn from; next: freedive sft --model {self.c.model} --data {self.c.out}/sft.jsonl --out runs/honest")

    # ---- files -----------------------------------------------------------------------------------------------------

    def _step(self, name: str, rows: list[Any], work: Callable[[list[Any]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        return [row for row, _ in self._batches(name, rows, work)]

    def _batches(self, name: str, rows: list[Any], work: Callable[[list[Any]], list[Any]]) -> Iterator[tuple[Any, int]]:
        """Results of a step in order, those of an earlier start from its file; a checkpoint after each batch."""
        done = self._written(name)[: self.at.get(name, 0)] if self.at.get(name) else []
        for number, row in enumerate(done):
            yield row, number
        with progress.bar(len(rows), f"probe: {name}") as bar:
            bar.advance(len(done))
            for at in range(len(done), len(rows), BATCH):
                results = work(rows[at : at + BATCH])
                for row in results:
                    self.artefact.append(f"{name.replace(' ', '-')}.jsonl", json_line(row))
                self._done(name, at + len(results))
                bar.advance(len(results))
                yield from ((row, at + i) for i, row in enumerate(results))

    def _written(self, name: str) -> list[Any]:
        lines = (self.artefact.work / f"{name.replace(' ', '-')}.jsonl").read_text(encoding="utf-8", errors="surrogatepass").split("\n")
        return [json.loads(line) for line in lines[: self.at[name]]]

    def _done(self, name: str, count: int) -> None:
        self.at[name] = count
        self.artefact.checkpoint({"at": self.at, "counts": dict(self.counts), "unclear": self.judge.unclear})


def normal(row: dict[str, Any]) -> str:
    """What a question is about, for comparing: its entity, else its words."""
    meta = row.get("meta") or {}
    about = row.get("entity") or meta.get("entity") or meta.get("person") or row.get("question") or (row.get("questions") or [""])[0]
    return str(about).lower()


def frequency_group(count: int) -> str:
    """1, 2, 3-4, 5-8, ...; 0 where it is not known."""
    high = 1 << max(0, count - 1).bit_length()
    return str(count) if count <= 2 else f"{high // 2 + 1}-{high}"
