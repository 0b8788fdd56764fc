"""In-context learning (talk 1.5): accuracy against the number of examples before a question, on tasks that only the examples tell.

    python benchmarks/in_context.py --model MODEL --data DATA_FOLDER --out in-context
    python benchmarks/in_context.py --model DIVE/pretrain --questions DIVE/crawl/tasks/exam_base.jsonl --shots 0 1 2 4 --out in-context-town

The base model reads "Question: France / Answer:" and examples of that form: no word says that a capital, an internet code or a continent is
wanted. Data, of DATA_FOLDER: sft/facts/countries_with_capitals.json, sft/facts/us_state_capitals.json, text/factbook.jsonl.gz; and MMLU
(eval/mmlu_val, examples of the same subject from eval/mmlu_dev). --questions takes files of one's own instead. Exact match, greedy; 95 % intervals by bootstrap.
Writes `freedive eval`'s report, the curve in it; the last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
from pathlib import Path
from typing import Any

from freedive.eval import stage as evaluation
from freedive.eval.stage import EvalConfig

CONTINENTS = ("Africa", "Europe", "South America", "Asia", "Oceania")


def tasks(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Name -> (question, answer) in random order."""
    countries = json.loads((data / "sft/facts/countries_with_capitals.json").read_text())["countries"]
    states = json.loads((data / "sft/facts/us_state_capitals.json").read_text())["capitals"]
    with gzip.open(data / "text/factbook.jsonl.gz", "rt") as lines:
        book = [row for row in map(json.loads, lines) if row["name"].strip() not in ("", "none")]
    codes = [(row["name"], row["facts"].get("Communications / Internet country code", "").split(";")[0].strip()) for row in book]
    where = [(row["name"], next((c for c in CONTINENTS if c in row["facts"].get("Geography / Location", "")), "")) for row in book]
    found = {
        "country to capital": [(c["name"], c["capital"]) for c in countries],
        "capital to country": [(c["capital"], c["name"]) for c in countries],
        "state to capital": [(s["state"], s["capital"]) for s in states],
        "country to internet code": [(name, code) for name, code in codes if len(code) == 3 and code[0] == "."],
        "country to continent": [pair for pair in where if pair[1]],
    }
    for pairs in found.values():
        random.Random(0).shuffle(pairs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="needed unless --questions is given")
    parser.add_argument("--questions", type=Path, nargs="*", default=[], help='JSONL of {"prompt", "answer"}, instead of the tasks of --data')
    parser.add_argument("--out", type=Path, default=Path("in-context"))
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16])
    parser.add_argument("--limit", type=int, default=150, help="questions of each task")
    parser.add_argument("--mmlu-limit", type=int, default=0, help="of MMLU's, with 0, 1 and 5 examples (0: none is asked)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int)
    a = parser.parse_args()
    if not a.questions and a.data is None:
        parser.error("--data or --questions")
    files = list(a.questions)
    if not files:
        for name, pairs in tasks(a.data).items():
            path = a.out / f"{name.replace(' ', '-')}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps({"prompt": q, "answer": w, "check": "exact"}, ensure_ascii=False) + "\n" for q, w in pairs), encoding="utf-8")
            files.append(path)
    how: dict[str, Any] = {"path": a.model, "base": True, "dtype": a.dtype, "threads": a.threads}
    told: dict[str, Any] = {"benchmark": "in_context", "model": a.model.name}
    told |= measured(EvalConfig(out=a.out / "report", suite=[f"generation:{f}" for f in files], shots=a.shots, limit=a.limit, max_new_tokens=16, **how))
    if a.mmlu_limit and a.data:
        told |= measured(EvalConfig(out=a.out / "mmlu", suite=[f"mmlu:{a.data / 'eval/mmlu_val.jsonl.gz'}"], shots=[0, 1, 5], limit=a.mmlu_limit,
                                    examples=[str(a.data / "eval/mmlu_dev.jsonl.gz")], **how))  # fmt: skip
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(told | {"cpu_seconds": round(used.ru_utime + used.ru_stime)}))


def measured(config: EvalConfig) -> dict[str, Any]:
    """Suite and number of examples -> accuracy with its interval."""
    suites = json.loads((evaluation.run(config) / "eval.json").read_text())["suites"]
    return {name: s["metrics"]["accuracy"] for name, s in suites.items()}


if __name__ == "__main__":
    main()
