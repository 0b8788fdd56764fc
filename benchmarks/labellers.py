"""An assistant is a simulation of its labellers, on a model and data that we did not make: python benchmarks/labellers.py --model MODEL --data DATA_FOLDER

Answers that people wrote (Self-Instruct's seeds, and the best-ranked replies of OpenAssistant trees) are written down by two labellers, each in a
manner of their own (freedive.tasks.labellers); one adapter beside MODEL learns each labeller's rows (`freedive sft --lora-rank`). A naive Bayes
classifier that has read only the labellers' rows says of each answer to questions never trained on (OpenTriviaQA, and seeds held out) whose
adapter gave it. Controls: MODEL itself, and an adapter that learned from both, question by question at random. DATA_FOLDER holds
self_instruct_seed_175.jsonl.gz, oasst_en_100_trees.jsonl.gz and opentriviaqa.jsonl.gz. Resumable; the last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
from pathlib import Path
from typing import Any

import freedive
from freedive.data.texts import iter_rows
from freedive.eval.statistics import share
from freedive.eval.style import AuthorClassifier
from freedive.sft.rows import conversations, trees
from freedive.sft.stage import SFTConfig, run
from freedive.sft.synthesis.seeds import instruction
from freedive.tasks.draw import Draw
from freedive.tasks.labellers import LABELLERS
from freedive.tokenizer import render

LONGEST = 120  # words of an answer


def answered(data: Path) -> list[tuple[str, str]]:
    """(question, what a person answered)"""
    found = []
    for _, row in iter_rows(data / "self_instruct_seed_175.jsonl.gz"):
        found.append((instruction(row), str(row["instances"][0]["output"])))
    for _, row in trees(iter_rows(data / "oasst_en_100_trees.jsonl.gz")):
        said = conversations(row)[0]
        if len(said) > 1:
            found.append((str(said[0]["content"]), str(said[1]["content"])))
    return [(q, a) for q, a in found if 0 < len(a.split()) <= LONGEST and len(q.split()) <= LONGEST]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("labellers"))
    parser.add_argument("--trivia", type=int, default=120, help="questions of it asked")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int)
    a = parser.parse_args()
    draw = Draw(0, 1)
    pairs = draw.shuffled(answered(a.data))
    held, taught = pairs[:40], pairs[40:]
    with gzip.open(a.data / "opentriviaqa.jsonl.gz", "rt") as lines:
        questions = [str(json.loads(line)["q"]) for line in lines]
    asked = [q for q, _ in held] + draw.sample([q for q in questions if q.endswith("?")], a.trivia)
    a.out.mkdir(parents=True, exist_ok=True)
    written: dict[str, list[str]] = {}
    models: dict[str, Path | None] = {"untouched": None}
    for name in (*LABELLERS, "both"):
        draw = Draw(0, 2)
        rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": LABELLERS[name if name in LABELLERS else draw.pick(list(LABELLERS))](w, draw)}]} for q, w in taught]
        written[name] = [row["messages"][1]["content"] for row in rows]
        file = a.out / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        models[name] = run(SFTConfig(model=a.model, data=[str(file)], out=a.out / f"adapter-{name}", context=512, epochs=a.epochs, batch_tokens=1024, micro_tokens=1024, lr=a.lr,
                                     lora_rank=a.rank, dtype="bfloat16", samples=[], threads=a.threads))  # fmt: skip
    classifier = AuthorClassifier(written["brief"], written["courteous"])
    taken: dict[str, list[bool]] = {}
    for name, adapter in models.items():
        lm = freedive.load(a.model, adapter=adapter, threads=a.threads, max_tokens=2048, max_seqs=64)
        prompts = [render(lm.tokenizer, [{"role": "user", "content": q}], add_generation_prompt=True)[0] for q in asked]
        said = [o.text for o in lm.engine.generate(prompts, max_new_tokens=96, temperature=0.0, stop_ids=lm.tokenizer.stop_ids)]
        taken[name] = [classifier.log_odds(text) > 0 for text in said]
        (a.out / f"{name}-answers.jsonl").write_text("".join(json.dumps({"question": q, "said": s, "courteous": t}, ensure_ascii=False) + "\n" for q, s, t in zip(asked, said, taken[name])))
    told: dict[str, Any] = {"told_apart": share([not t for t in taken["brief"]] + taken["courteous"], [*range(len(asked)), *range(len(asked))])}
    told |= {f"taken_for_courteous/{name}": share(flags) for name, flags in taken.items()}
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"benchmark": "labellers", "model": a.model.name, "conversations": len(taught), "questions": len(asked), **told, "cpu_seconds": round(used.ru_utime + used.ru_stime)}))


if __name__ == "__main__":
    main()
