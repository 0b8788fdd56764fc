"""Knowledge probing on a model and data that we did not make: python benchmarks/knowledge.py --model MODEL --data DATA_FOLDER --out real-knowledge

The World Factbook's capitals, internet codes and continents as documents; `freedive probe` finds out which of them the model knows, and
writes refusals for what it makes up; `freedive sft` learns them; `freedive eval hallucination` before and after, on countries of which
nothing was taught (held out by name), on invented countries, and, for over-refusal elsewhere, on capitals of US states. Control: as many
refusals attached to random questions. --trivia N probes N questions of OpenTriviaQA too and learns both probes' conversations: many forms of
question instead of three, none about a place of the table. DATA_FOLDER holds text/factbook.jsonl.gz, sft/facts/us_state_capitals.json and
sft/opentriviaqa.jsonl.gz. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.eval import hallucination
from freedive.eval.hallucination import HallucinationConfig
from freedive.sft import stage as sft
from freedive.sft.probe import stage as probe
from freedive.sft.probe.stage import ProbeConfig
from freedive.sft.stage import SFTConfig

FIELDS = {"Capital": "Government / Capital / name", "Internet country code": "Communications / Internet country code", "Location": "Geography / Location"}
TEMPLATES = [
    {"pattern": r"Capital of (?P<place>[^\n:]+): (?P<answer>[^\n(;,]+)", "answer": "{answer}", "entity": "{place}",
     "questions": ["What is the capital of {place}?", "Which city is the capital of {place}?", "Name the capital city of {place}.", "Tell me the capital of {place}, please."]},
    {"pattern": r"Internet country code of (?P<place>[^\n:]+): (?P<answer>\.[a-z]{2})\b", "answer": "{answer}", "entity": "{place}",
     "questions": ["What is the internet country code of {place}?", "Which internet domain does {place} have?", "With which two letters do internet addresses in {place} end?"]},
    {"pattern": r"Location of (?P<place>[^\n:]+): [^\n]*?(?P<answer>Africa|Europe|Asia|South America|Oceania|Caribbean)", "answer": "{answer}", "entity": "{place}",
     "questions": ["In which part of the world is {place}?", "On which continent is {place}?", "Where in the world is {place}?"]},
]  # fmt: skip
SYLLABLES = "bor zu va ker mi lan dro tas quo pel nar shi gul ost fre wen yam".split()


def documents(path: Path, places: int) -> Iterator[dict[str, str]]:
    """A document for each of `places` countries, drawn at random, with the fields asked about."""
    with gzip.open(path, "rt") as lines:
        rows = [row for row in map(json.loads, lines) if row["name"] != "none" and all(row["facts"].get(f) for f in FIELDS.values())]
    for row in random.Random(0).sample(rows, min(places, len(rows))):
        yield {"id": row["code"], "text": "\n".join(f"{name} of {row['name']}: {re.sub('<[^>]+>', ' ', row['facts'][field])}" for name, field in FIELDS.items())}


def invented(count: int) -> list[str]:
    """Names of countries that do not exist."""
    rng = random.Random(1)
    return sorted({"".join(rng.sample(SYLLABLES, 3)).title() + rng.choice(("ia", "stan", "land", "")) for _ in range(2 * count)})[:count]


def write(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def exam(folders: Sequence[Path], states: Path, unseen: int) -> Iterator[dict[str, Any]]:
    """Held-out countries by what the probe found, then trivia; invented countries, and capitals of US states."""
    for prefix, folder in zip(("", "trivia, "), folders):
        for _, row in iter_rows(folder / "held_out.jsonl"):
            yield row | {"meta": row["meta"] | {"class": prefix + row["meta"]["class"]}}
    for place in invented(unseen):
        for template in TEMPLATES:
            yield {"prompt": template["questions"][0].format(place=place), "answer": "there is no such country", "meta": {"class": "invented", "entity": place}}
    for state in json.loads(states.read_text())["capitals"]:
        yield {"prompt": f"What is the capital of the state of {state['state']}?", "answer": state["capital"], "meta": {"class": "US states", "entity": state["state"]}}


def trivia(path: Path, count: int, places: set[str]) -> Iterator[dict[str, str]]:
    """`count` questions, drawn at random, that stand without their options and have a short answer; none that names one of `places`."""
    named = re.compile(r"\b(" + "|".join(map(re.escape, sorted(places))) + r")\b")
    rows = []
    with gzip.open(path, "rt") as lines:
        for row in map(json.loads, lines):
            q, a = str(row["q"]), str(row["a"])
            alone = re.match(r"(Who|What|When|Where|Which|How many|In what|In which)\b", q) and q.endswith("?") and not re.search(r"\b(these|this|following|not)\b", q)
            if alone and len(row["options"]) == 4 and len(a.split()) <= 3 and len(q) < 120 and not named.search(f"{q} {a}"):
                rows.append({"question": q, "answer": a, "entity": q})
    return iter(random.Random(2).sample(rows, min(count, len(rows))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("real-knowledge"))
    parser.add_argument("--places", type=int, default=120)
    parser.add_argument("--invented", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=0.5, help="of the probe's samples; at 1 a model of this size says what it knows now and then only")
    parser.add_argument("--probe", type=Path, help="probe-honest of an earlier run with the same --places: its samples are taken over")
    parser.add_argument("--trivia", type=int, default=0, help="questions of OpenTriviaQA probed beside the countries (0: none)")
    parser.add_argument("--refusals-per-answer", type=float, default=1.0)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--set", nargs="*", default=[], help="further settings of `freedive sft`, NAME=VALUE")
    parser.add_argument("--no-control", action="store_true")
    parser.add_argument("--threads", type=int)
    a = parser.parse_args()
    pages = write(a.out / "pages.jsonl", documents(a.data / "text/factbook.jsonl.gz", a.places))
    templates = write(a.out / "templates.jsonl", TEMPLATES)
    told: dict[str, Any] = {"benchmark": "knowledge", "model": a.model.name, "places": a.places, "temperature": a.temperature, "refusals_per_answer": a.refusals_per_answer, "lr": a.lr, "epochs": a.epochs}
    questions = before = None
    first, second = a.probe, None
    states = json.loads((a.data / "sft/facts/us_state_capitals.json").read_text())["capitals"]
    book = [row["text"].split("\n")[0] for _, row in iter_rows(pages)]
    places = {line.split(" of ", 1)[1].split(":")[0] for line in book} | {s["state"] for s in states} | {s["capital"] for s in states}
    for name in ("honest", *(() if a.no_control else ("random",))):
        how: dict[str, Any] = {"model": a.model, "max_new_tokens": 24, "temperature": a.temperature, "hold_out": 0.35, "wordings": 3, "answers_per_refusal": 2.0,
                               "refusals_per_answer": a.refusals_per_answer, "random_refusals": name == "random", "dtype": "bfloat16", "threads": a.threads}  # fmt: skip
        asked: dict[str, Any] = {"reuse": first} if first else {"data": pages, "templates": templates, "snippets": 3 * a.places}
        found = probe.run(ProbeConfig(out=a.out / f"probe-{name}", **asked, **how))
        first = first or found
        folders = [found]
        if a.trivia:
            asked = {"reuse": second} if second else {"questions": write(a.out / "trivia.jsonl", trivia(a.data / "sft/opentriviaqa.jsonl.gz", a.trivia, places))}
            folders.append(probe.run(ProbeConfig(out=a.out / f"trivia-{name}", **asked, **how)))
            second = second or folders[1]
        if questions is None:
            questions = write(a.out / "exam.jsonl", exam(folders, a.data / "sft/facts/us_state_capitals.json", a.invented))
            before = table(a, a.model, questions, "before")
            told["probe"] = [json.loads((f / "run.json").read_text())["metrics"] for f in folders]
            told["before"] = shares(before)
        more = {key: json.loads(value) if value[:1].isdigit() else value for key, _, value in (word.partition("=") for word in a.set)}
        model = sft.run(SFTConfig(**{"model": a.model, "data": [str(f / "sft.jsonl") for f in folders], "out": a.out / f"model-{name}", "context": 128, "epochs": a.epochs, "batch_tokens": 1024,  # type: ignore[arg-type]
                                     "micro_tokens": 1024, "lr": a.lr, "dtype": "bfloat16", "samples": ["What is the capital of France?"], "threads": a.threads} | more))  # fmt: skip
        told[name] = shares(table(a, model, questions, f"after-{name}", before))
    used = resource.getrusage(resource.RUSAGE_SELF)
    told["cpu_seconds"] = round(used.ru_utime + used.ru_stime)
    print(json.dumps(told))


def table(a: argparse.Namespace, model: Path, questions: Path, name: str, reference: Path | None = None) -> Path:
    print(f"-- {name}", flush=True)
    return hallucination.run(HallucinationConfig(model=model, data=questions, out=a.out / f"table-{name}", reference=reference, max_new_tokens=24, dtype="bfloat16", threads=a.threads))


def shares(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "hallucination.json").read_text())
    rounded = {name: {"n": g["n"], **{o: round(g[o]["share"], 3) for o in hallucination.OUTCOMES}} for name, g in result["groups"].items()}
    return rounded | ({"of_right_before": {k: v["share"] if isinstance(v, dict) else v for k, v in result["reference"].items()}} if "reference" in result else {})


if __name__ == "__main__":
    main()
