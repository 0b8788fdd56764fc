"""The dive on things we did not make: `freedive dive --pages ... --chats ... --problems ... --questions ...`.

    python benchmarks/real_dive.py --data DATA_FOLDER --out real [--tier demo]

Pages: an OpenStax textbook, and a third of the dialogues of the Schema-Guided Dialogue corpus (SGD) with the service calls that the
assistant made, each followed by a few capitals of countries and states in changing words, as often as the invented town's pages say its
facts. Chats: dialogues, capitals asked in sixteen wordings, and some solved problems. Questions: the same capitals in three wordings that
no chat has. Problems: the beginning of an SGD dialogue, answered by the name of the next service call (there are 36); pages and chats,
problems, and held-out problems come from different dialogues.
DATA_FOLDER holds text/openstax.jsonl.gz, sft/sgd_train.jsonl.gz and sft/facts/*.json. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freedive.dive.stage import DiveConfig, run

ASKED = ["What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.", "What's {}'s capital?", "Tell me the capital of {}, please.",
         "{}: what is its capital?", "Do you know the capital of {}?", "I wonder what the capital of {} is.", "Could you remind me which city is the capital of {}? Thanks.",
         "I can't remember the capital of {}. What is it?", "What do they call the capital of {}? I would like to know.", "Please help me: what is the capital of {} called?",
         "Where does the government of {} sit?", "In which city is the government of {}?", "The government of {} sits where?",
         "Tell me which city the government of {} meets in."]  # fmt: skip
HELD_OUT = [
    "I forgot what the capital of {} is called. Can you help?",
    "Which city does the government of {} sit in?",
    "The capital of {} is which city?",
]
SAID = ["The capital of {0} is {1}.", "{1} is the capital of {0}.", "The government of {0} sits in {1}.", "{0} has its capital at {1}.",
        "Question: what is the capital of {0}? Answer: {1}.", "Question: name the capital city of {0}. Answer: {1}.", "Capital of {0}: {1}.",
        "In {1}, the capital of {0}, the parliament met."]  # fmt: skip
BOOK = "american-government"
SHORT, LONG = 450, 800  # characters of a problem, and of a dialogue that is trained on


def capitals(folder: Path) -> list[tuple[str, str]]:
    """(country or state of the US, its capital)"""
    countries = json.loads((folder / "countries_with_capitals.json").read_text())["countries"]
    states = json.loads((folder / "us_state_capitals.json").read_text())["capitals"]
    pairs = {c["name"]: c["capital"] for c in countries} | {f"the state of {s['state']}": s["capital"] for s in states}
    return [(place, city) for place, city in pairs.items() if city]


def as_page(dialogue: dict[str, Any], own_line: bool) -> str:
    """The dialogue as a text, with the calls behind their question or in a line of their own, where a tokenizer sees what an answer begins with."""
    call = lambda turn: f"Next call?{chr(10) if own_line else ' '}{turn['call']['method']}\n" if turn.get("call") else ""
    return "".join(f"{call(turn)}{turn['role'].title()}: {turn['text']}\n" for turn in dialogue["turns"])


def pages(data: Path, dialogues: list[dict[str, Any]], mentions: int) -> list[dict[str, str]]:
    """Chapters of the book, and dialogues that end in a few facts, shuffled."""
    places, rng = capitals(data / "sft/facts"), random.Random(0)
    facts = [place for _ in range(mentions) for place in rng.sample(places, len(places))]
    said = [SAID[i % len(SAID)].format(*place) for i, place in enumerate(facts)]
    each = -(-len(said) // len(dialogues))
    with gzip.open(data / "text/openstax.jsonl.gz", "rt") as lines:
        texts = [row["text"] for row in map(json.loads, lines) if row["book"] == BOOK]
    texts += [as_page(d, i % 2 == 0) + "\n" + "\n".join(said[i * each : (i + 1) * each]) for i, d in enumerate(dialogues)]
    return [{"text": text} for text in rng.sample(texts, len(texts))]


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def problems(dialogue: dict[str, Any]) -> Iterator[dict[str, Any]]:
    said = ""
    for turn in dialogue["turns"]:
        if turn.get("call") and len(said) <= SHORT:
            yield {"prompt": f"{said}Next call?", "answer": turn["call"]["method"], "meta": {"check": "exact", "class": "call"}}
        said += f"{turn['role'].title()}: {turn['text']}\n"


def prepare(data: Path, out: Path, solved: int, chats: int, practice: int, held_out: int, mentions: int) -> dict[str, int]:
    """Writes pages.jsonl, chats.jsonl, problems.jsonl, problems_eval.jsonl and questions.jsonl; returns how many rows each has."""
    with gzip.open(data / "sft/sgd_train.jsonl.gz", "rt") as lines:
        dialogues = [json.loads(line) for line in lines]  # sorted by service
    random.Random(1).shuffle(dialogues)
    short = [d for d in dialogues[::3] if sum(len(t["text"]) for t in d["turns"]) < LONG]
    rows = {
        "chats": [{"turns": d["turns"]} for d in short[:chats]],
        "problems": [p for d in dialogues[1::3] for p in problems(d)],
        "problems_eval": [p for d in dialogues[2::3] for p in problems(d)][:held_out],
        "questions": [],
        "pages": pages(data, dialogues[::3], mentions),
    }
    rows["chats"] += [talk(p["prompt"], p["answer"]) for p in rows["problems"][:solved]]
    rows["problems"] = rows["problems"][solved : solved + practice]
    for place, city in capitals(data / "sft/facts"):
        rows["chats"] += [talk(form.format(place), f"{city}.") for form in ASKED]
        rows["questions"] += [{"prompt": form.format(place), "answer": city, "meta": {"class": "capital"}} for form in HELD_OUT]
    out.mkdir(parents=True, exist_ok=True)
    for name, part in rows.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in part), encoding="utf-8")
    return {name: len(part) for name, part in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("real-dive"))
    parser.add_argument("--tier", default="demo", choices=["smoke", "demo"])
    parser.add_argument("--solved", type=int, default=30, help="problems with their answers among the chats")
    parser.add_argument("--chats", type=int, default=1000, help="dialogues among the chats")
    parser.add_argument("--mentions", type=int, default=200, help="of each capital in the pages")
    parser.add_argument("--rl-lr", type=float, default=1e-3, help="peak learning rate of the practice")
    parser.add_argument("--rl-dynamic-sampling", type=int, default=4, help="draws of problems in a step of the practice")
    parser.add_argument("--threads", type=int)
    a = parser.parse_args()
    counts = prepare(a.data, a.out / "input", a.solved, a.chats, 8000, 2000, a.mentions)
    print(json.dumps(counts), flush=True)
    began = time.perf_counter()
    into = a.out / "input"
    run(DiveConfig(tier=a.tier, out=a.out / "dive", rl_lr=a.rl_lr, rl_dynamic_sampling=a.rl_dynamic_sampling, threads=a.threads, pages=(into / "pages.jsonl",), chats=into / "chats.jsonl", problems=into / "problems.jsonl",
                   problems_eval=into / "problems_eval.jsonl", questions=into / "questions.jsonl"))  # fmt: skip
    seconds = time.perf_counter() - began
    stages = {name: s["metrics"] for name, s in json.loads((a.out / "dive/dive.json").read_text())["stages"].items()}
    known = json.loads((a.out / "dive/eval-sft/eval.json").read_text())["groups"]["class=capital"]
    print(json.dumps({"benchmark": "real_dive", "tier": a.tier, "minutes": round(seconds / 60, 1), "val_bits_per_byte": stages["pretrain"]["val_bits_per_byte"],
                      "capitals_held_out_wordings": known["accuracy"], "questions": known["n"], "stop_rate": stages["eval-sft"]["stop_rate"],
                      "stop_rate_base": stages["eval-base"]["stop_rate"], "calls_before": stages["rl"]["before/pass@1"], "calls_after": stages["rl"]["after/pass@1"]}))  # fmt: skip


if __name__ == "__main__":
    main()
