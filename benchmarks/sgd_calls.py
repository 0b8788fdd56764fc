"""LoRA SFT of an open model on real tool dialogues: does it make the service calls that the dialogues have?

    python benchmarks/sgd_calls.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data DATA_FOLDER/sft --out sgd

Data: the training part of the Schema-Guided Dialogue corpus (sgd_train.jsonl.gz and sgd_train_schema.json, CC BY-SA 4.0). Held out are its last
500 dialogues by a hash of the id; four services, chosen by a hash too, are in no dialogue that is trained on. Each dialogue begins with the
functions of its services as the corpus describes them, a line each; calls stand in it as tool calls, and of their results what is then said; it
is trained on up to its last call. Training: `freedive sft
--lora-rank`, resumable. Measured, before and after, at every call of the held-out dialogues, the true dialogue up to it given: is the answer
a call, of the right function, with exactly the right arguments; F1 of the arguments (pairs of name and value, summed over all calls); and how often
a call comes where the corpus has words. Greedy; intervals resample dialogues. The last line is JSON. Time of training: as printed by the run; 2 cores, busy or not.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import freedive
from freedive.data.texts import iter_rows
from freedive.eval.statistics import interval
from freedive.inference import LM
from freedive.sft.rows import tool_messages
from freedive.sft.stage import SFTConfig, run
from freedive.tokenizer import render
from freedive.tokenizer.chat_json import parse_call

TOLD = "You help people by calling functions. When all that a function needs is known, call it: <tool_call>\n{\"name\": ..., \"arguments\": {...}}\n</tool_call>\nToday is Friday, 2019-03-01.\nFunctions:"
HELD_OUT, UNSEEN = 500, 4


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def functions(schema: list[dict[str, Any]], services: list[str]) -> str:
    """The functions of services as lines: name, the arguments it needs, those it may have, and what it does."""
    lines = []
    for service in schema:
        if service["service_name"] in services:
            for intent in service["intents"]:
                arguments = [*intent["required_slots"], *(f"{name}?" for name in intent["optional_slots"])]
                lines.append(f"{intent['name']}({', '.join(arguments)}): {intent['description']}")
    return "\n".join([TOLD, *lines])


def spoken(turn: dict[str, Any]) -> dict[str, Any]:
    """How many results a call had, and of the first what the assistant speaks of: a corpus's whole answers are a third of its tokens."""
    results = turn.get("result") or []
    return {"results": len(results)} | {k: v for k, v in (results[0] if results else {}).items() if str(v).lower() in turn["text"].lower()}


def messages(dialogue: dict[str, Any], schema: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [{"role": "system", "content": functions(schema, dialogue["services"])}]
    for turn in dialogue["turns"]:
        if turn.get("call"):
            out += tool_messages(turn["call"]["method"], turn["call"]["parameters"], spoken(turn))
        out.append({"role": turn["role"], "content": turn["text"]})
    return out


def up_to_last_call(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = max((i for i, m in enumerate(said) if m.get("tool_calls")), default=len(said) - 1)
    return said[: last + 1]


def split(dialogues: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """(trained on, in random order; held out; services never seen in training)"""
    services = sorted({s for d in dialogues for s in d["services"]}, key=hashed)
    unseen = services[:UNSEEN]
    ordered = sorted(dialogues, key=lambda d: hashed(d["id"]))
    train = [d for d in ordered[:-HELD_OUT] if not set(d["services"]) & set(unseen)]
    return train, ordered[-HELD_OUT:], unseen


def questions(held_out: list[dict[str, Any]], schema: list[dict[str, Any]], unseen: list[str]) -> Iterator[dict[str, Any]]:
    """Every turn of the assistant: the messages before it, and the call it makes, or None."""
    for dialogue in held_out:
        said, turns = messages(dialogue, schema), iter(t for t in dialogue["turns"] if t.get("call"))
        for i, message in enumerate(said):
            if message["role"] == "assistant" and said[i - 1]["role"] != "tool":  # after an answer comes what it is told
                call = message["tool_calls"][0]["function"] if message.get("tool_calls") else None
                service = next(turns)["call"]["service"] if call else ""
                yield {"dialogue": dialogue["id"], "before": said[:i], "call": call, "kind": "" if call is None else "unseen" if service in unseen else "seen"}


def measure(lm: LM, asked: list[dict[str, Any]], context: int, path: Path) -> dict[str, Any]:
    """Greedy answers to all questions, and what is right about them. The answers go to `path`."""
    prompts = [render(lm.tokenizer, q["before"], add_generation_prompt=True)[0] for q in asked]
    kept = [(q, p) for q, p in zip(asked, prompts, strict=True) if len(p) + 128 <= context]
    began, cpu = time.perf_counter(), cpu_seconds()
    out = lm.engine.generate([p for _, p in kept], max_new_tokens=128, temperature=0.0, stop_ids=lm.tokenizer.stop_ids)
    count: dict[str, dict[str, int]] = {}
    exact: list[tuple[str, str, bool]] = []  # kind, dialogue, whether the call was
    with path.open("w", encoding="utf-8") as file:
        for (q, _), o in zip(kept, out, strict=True):
            got = parse_call(o.text)
            c = count.setdefault(q["kind"] or "words", dict.fromkeys(("n", "called", "function", "exact", "hits", "given", "wanted"), 0))
            c["n"] += 1
            c["called"] += got is not None
            if q["call"] is not None:
                want = {(k, str(v)) for k, v in q["call"]["arguments"].items()}
                given = {(k, str(v)) for k, v in got[1].items()} if got and got[0] == q["call"]["name"] else set()
                right = got is not None and got[0] == q["call"]["name"]
                c["function"] += right
                c["exact"] += right and given == want
                exact.append((q["kind"], q["dialogue"], right and given == want))
                c["hits"], c["given"], c["wanted"] = c["hits"] + len(want & given), c["given"] + len(given), c["wanted"] + len(want)
            file.write(json.dumps({"kind": q["kind"], "want": q["call"], "said": o.text}, ensure_ascii=False) + "\n")
    calls = {kind: c for kind, c in count.items() if kind != "words"}
    count["all"] = {key: sum(c[key] for c in calls.values()) for key in next(iter(calls.values()))}
    told = {kind: {"calls": c["n"], "called": share(c["called"], c["n"]), "function": share(c["function"], c["n"]), "exact": share(c["exact"], c["n"]),
                   "argument_f1": share(2 * c["hits"], c["given"] + c["wanted"])} for kind, c in count.items() if kind != "words"}  # fmt: skip
    for kind in (*calls, "all"):  # the calls of a dialogue are not independent
        told[kind]["exact_95"] = [round(x, 4) for x in interval([e for k, _, e in exact if kind in (k, "all")], [d for k, d, _ in exact if kind in (k, "all")])]
    if words := count.get("words"):
        told["false_calls"] = {"turns": words["n"], "called": share(words["called"], words["n"])}
    return told | {"too_long": len(asked) - len(kept), "seconds": round(time.perf_counter() - began), "cpu_seconds": round(cpu_seconds() - cpu)}


def share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("sgd"))
    parser.add_argument("--dialogues", type=int, default=1200, help="trained on")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--context", type=int, default=1280)
    parser.add_argument("--dtype", default="bfloat16", help="of the products while training")
    parser.add_argument("--calls", type=int, default=0, help="calls measured (0: all of the held-out dialogues)")
    parser.add_argument("--words", type=int, default=300, help="turns without a call measured")
    parser.add_argument("--threads", type=int)
    c = parser.parse_args()
    with gzip.open(c.data / "sgd_train_schema.json.gz", "rt") if (c.data / "sgd_train_schema.json.gz").exists() else open(c.data / "sgd_train_schema.json") as file:
        schema = json.load(file)
    train, held_out, unseen = split([row for _, row in iter_rows(c.data / "sgd_train.jsonl.gz")])
    c.out.mkdir(parents=True, exist_ok=True)
    rows = [{"messages": up_to_last_call(messages(d, schema))} for d in train[: c.dialogues]]
    (c.out / "train.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    asked = list(questions(held_out, schema, unseen))
    calls, words = [q for q in asked if q["call"]], [q for q in asked if not q["call"]]
    calls, words = calls[:: max(1, len(calls) // c.calls)] if c.calls else calls, words[:: max(1, len(words) // max(1, c.words))][: c.words]
    print(f"{len(train):,} dialogues without {', '.join(unseen)}, of which {len(rows):,} are trained on; held out: {len(calls):,} calls, {sum(q['kind'] == 'unseen' for q in calls)} of them of these services")
    how: dict[str, Any] = {"threads": c.threads, "max_tokens": 2048, "max_seqs": 64, "dtype": "auto"}
    result: dict[str, Any] = {"benchmark": "sgd_calls", "model": c.model.name, "dialogues": len(rows), "unseen_services": unseen}

    def measured(name: str, adapter: Path | None) -> dict[str, Any]:
        path = c.out / f"{name}.json"
        if not path.exists():  # a benchmark that was stopped goes on here
            told = measure(freedive.load(c.model, adapter=adapter, **how), [*calls, *words], c.context + 128, c.out / f"{name}.jsonl")
            path.write_text(json.dumps(told))
        return json.loads(path.read_text())

    result["before"] = measured("before", None)
    print(json.dumps(result["before"]), flush=True)
    began, cpu, done = time.perf_counter(), cpu_seconds(), (c.out / "adapter").is_dir()
    out = run(SFTConfig(model=c.model, data=[str(c.out / "train.jsonl")], out=c.out / "adapter", context=c.context, epochs=1.0, batch_tokens=c.batch_tokens,
                        micro_tokens=2048, lr=c.lr, lora_rank=c.rank, dtype=c.dtype, save_every=20, log_every=5, samples=[], threads=c.threads))  # fmt: skip
    if not done:
        used = {"minutes": round((time.perf_counter() - began) / 60, 1), "cpu_minutes": round((cpu_seconds() - cpu) / 60, 1)}
        (c.out / "training.json").write_text(json.dumps(used))
    result["training"] = json.loads((c.out / "training.json").read_text())  # of the last start, where it was stopped and went on
    result["after"] = measured("after", out)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
