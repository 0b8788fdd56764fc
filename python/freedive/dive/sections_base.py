"""The report's first chapter: from pages to a base model (talk 1.1 to 1.5).

Each function gives the HTML of one section, or None if what it shows is not there.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_texts
from freedive.model import DecoderConfig
from freedive.model.config import from_hf
from freedive.runs import UserError, human_bytes
from freedive.tokenizer import Tokenizer, render
from freedive.tokenizer.colour import to_html

from .chart import chart
from .found import Found, jsonl
from .page import bars, chat, code, details, facts, number, paragraph, percent, quote, table

SAMPLE_CHARACTERS = 420
TALK_CHAT = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello!!!"},
    {"role": "assistant", "content": "Hi! How can I help you today?"},
]


def data(found: Found) -> str | None:
    """1.1: the waterfall, what was thrown away and why, and whether that was right."""
    waterfall = found.json("data", "waterfall.json")
    if not waterfall:
        return None
    total, rows, kept = max(1, waterfall["documents_in"]), [], []
    for step in waterfall["steps"]:
        for rule, gone in step["removed"].items():
            rows.append((step["step"], rule, gone["documents"], human_bytes(gone["bytes"]), percent(gone["documents"] / total, 1)))
        if step["bytes_trimmed"] > 0:
            rows.append((step["step"], "cut from pages that stay", "", human_bytes(step["bytes_trimmed"]), ""))
        note = f"{step['documents_out']:,} pages, {human_bytes(step['bytes_out'])}"
        kept.append((step["step"], step["documents_out"] / total, note))
    body = paragraph(
        "A language model learns from text, and most of what a crawler brings home is not text worth learning from: "
        "menus, cookie banners, spam, copies, other languages. Each step below removes one kind, and says why."
    )
    body += facts({"raw pages": waterfall["documents_in"], "raw bytes": human_bytes(waterfall["bytes_in"]),
                   "documents left": waterfall["documents_out"], "clean text": human_bytes(waterfall["bytes_out"])})  # fmt: skip
    body += bars([("crawled", 1.0, f"{total:,} pages, {human_bytes(waterfall['bytes_in'])}"), *kept])
    body += details("What was removed, by rule", table(("step", "rule", "pages", "bytes", "of all pages"), rows, left=2))
    body += _against_truth(found)
    samples: dict[str, str] = {}
    for row in found.lines("data", "rejected.jsonl"):
        caption = f"{row['reason']} · {row.get('url') or row.get('source', '')}"
        samples.setdefault(row["reason"], quote(row["text"][:600], caption))
    if samples:
        body += details(f"A rejected page for each of {len(samples)} reasons", "".join(samples.values()))
    first = next(iter(iter_texts(found.folders["data"])), "")
    body += "<h3>A document that stayed</h3>" + quote(first[:SAMPLE_CHARACTERS])
    return body + code("freedive/data/stage.py", "freedive/data/quality.py")


def _against_truth(found: Found) -> str:
    """Where the crawl says what each page is: how many of each kind stayed."""
    truth = found.lines("crawl", "truth.jsonl")
    if not truth:
        return ""
    stayed = {row.get("url") for file in sorted(found.folders["data"].glob("*-*.jsonl")) for row in jsonl(file)}
    pages, kept = Counter(row["kind"] for row in truth), Counter(row["kind"] for row in truth if row["url"] in stayed)
    fate = {"keep": "stays", "any": "either"}
    should = {row["kind"]: fate.get(row["expected"], f"goes: {row['expected']}") for row in truth}
    order = sorted(pages, key=lambda kind: (should[kind] != "stays", kind))
    note = paragraph(
        "This web was made for the dive, so it is known what each page is. Near-copies (`near_dedup`) need a step that compares similar texts."
    )
    rows = [(kind, should[kind], pages[kind], kept[kind]) for kind in order]
    summary = "Was that right? Each kind of page, and how many stayed"
    return details(summary, note + table(("kind of page", "it", "pages", "stayed"), rows, left=2))


def tokens(found: Found) -> str | None:
    """1.2: text as the model sees it, and a conversation in the same form with its loss mask."""
    tok = found.tokenizer
    if tok is None:
        return None
    measured = found.metrics("tokenizer")
    body = paragraph(
        "The model sees numbers, not letters. The tokenizer joined the most frequent neighbours again and again, so that "
        "a common word is one number and a rare one a few. Each colour below is one token; touch or point at one to see "
        "its number and bytes."
    )
    numbers: dict[str, Any] = {"tokens in the vocabulary": tok.vocab_size}
    if measured.get("bytes_per_token"):
        numbers["bytes of unseen text in a token"] = f"{measured['bytes_per_token']:.2f}"
    body += facts(numbers)
    sample = _sample_text(found)
    if sample:
        ids = tok.encode(sample)
        body += to_html(tok, ids) + details(f"The same {len(ids)} tokens as the model sees them", _ids(ids))
    longest = sorted((t for t in _ordinary(tok)), key=len, reverse=True)[:24]
    if longest and len(longest[0]) > 1:
        body += paragraph("The longest pieces it learned: " + ", ".join(f"`{t}`" for t in longest if "`" not in t))
    if tok.chat is not None:
        ids, mask = render(tok, TALK_CHAT)
        body += "<h3>A conversation is tokens too</h3>" + paragraph(
            "Special tokens that no text can contain mark who speaks. Fine-tuning (chapter 2) learns only what is "
            "underlined in red: the assistant's words and its end of turn. This is the example of the talk."
        )
        body += to_html(tok, ids, mask) + details(f"Its {len(ids)} numbers", _ids(ids))
    return body + code("freedive/tokenizer/train.py", "freedive/tokenizer/chat.py")


def _ids(ids: list[int]) -> str:
    return f'<pre class="ids">{", ".join(map(str, ids))}</pre>'


def _ordinary(tok: Tokenizer) -> list[str]:
    """Tokens that are readable text of their own, without the space many begin with."""
    ids = (i for i in range(min(tok.vocab_size, 100_000)) if tok.vocab_mask[i] and i not in tok.special_ids)
    shown = (tok.decode([i]).strip() for i in ids)
    return [t for t in dict.fromkeys(shown) if t.isprintable() and "�" not in t]


def _sample_text(found: Found) -> str:
    """The beginning of the first held-out document of some length."""
    if "data" not in found.folders:
        return "Hello world! The tokenizer cuts this sentence into pieces: 127+42=169."
    try:
        texts = list(iter_texts(found.folders["data"], "val"))
    except UserError:  # no held-out part
        texts = list(iter_texts(found.folders["data"]))[:20]
    return next((t for t in texts if len(t) >= SAMPLE_CHARACTERS), texts[0])[:SAMPLE_CHARACTERS]


def training(found: Found) -> str | None:
    """1.3: the loss goes down."""
    log = found.lines("pretrain", "metrics.jsonl")
    if not log:
        return None
    metrics, tok = found.metrics("pretrain"), found.tokenizer
    body = paragraph(
        "Training shows the network a stretch of text, asks for the next token at every position, and moves every "
        "parameter a little so that the token that really came becomes likelier. The loss is the surprise in nats: e to "
        "the minus loss is the probability given to the right token."
    )
    names = {"train_tokens": "training tokens", "steps": "steps", "val_loss": "loss on unseen pages"}
    names |= {"val_bits_per_byte": "bits per byte of unseen pages"}
    body += facts({caption: metrics[name] for name, caption in names.items() if metrics.get(name) is not None})
    curves = {"training": [(row["step"], row["loss"]) for row in log if row.get("loss") is not None],
              "unseen pages": [(row["step"], row["val_loss"]) for row in log if row.get("val_loss") is not None]}  # fmt: skip
    body += chart(curves, "step", "loss, nats a token")
    if tok is not None and curves["training"]:
        first, last = curves["training"][0][1], curves["training"][-1][1]
        body += paragraph(
            f"A blind guess among {tok.vocab_size:,} tokens would score ln {tok.vocab_size:,} = {math.log(tok.vocab_size):.2f}; "
            f"the log begins with {first:.2f} and ends with {last:.2f}."
        )
    return body + speed(found, "pretrain") + code("freedive/pretrain/stage.py", "freedive/train/loop.py")


def speed(found: Found, stage: str) -> str:
    """Tokens a second and the share of the machine's float32 peak: the median, and where the middle 80 % lie."""
    lines = [row for row in found.lines(stage, "timings.jsonl") if "tokens_per_second" in row]
    if len(lines) < 2:
        return ""
    rows = [("tokens a second", *(f"{v:,.0f}" for v in _spread([row["tokens_per_second"] for row in lines])))]
    shares = [row["peak_share"] for row in lines if "peak_share" in row]
    note = ""
    if len(shares) >= 2:
        rows.append(("% of the float32 peak", *(f"{100 * v:.1f}" for v in _spread(shares))))
        note = paragraph("The peak is probed at each line of the log, and the highest so far counts: on a busy machine it may be seen too low.")
    return "<h3>How fast</h3>" + table(("measured between log lines", "median", "10th percentile", "90th percentile"), rows) + note


def _spread(values: list[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile."""
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return statistics.median(values), tenths[0], tenths[8]


def network(found: Found) -> str | None:
    """1.4: what the parameters are, and the memory they take."""
    if not found.models:
        return None
    folder = found.folders[found.models[0]]
    config = from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    groups = _parameter_groups(folder / "model.safetensors")
    total = sum(count * copies for _, _, count, copies in groups)
    body = paragraph(
        f"The network is a fixed mathematical expression of its input tokens and {total:,} parameters: {config.n_layer} "
        "layers, each an attention step in which a position looks back at earlier ones, and a small network that works "
        f"on each position alone. Its vectors have {config.d_model} numbers."
    )
    body += facts({"parameters": total, "layers": config.n_layer, "width": config.d_model, "attention heads": config.n_head,
                   "longest input, tokens": config.max_positions})  # fmt: skip
    rows = [(name, " x ".join(map(str, shape)), copies, count * copies) for name, shape, count, copies in groups]
    body += details("Every parameter", table(("tensor", "shape", "times", "parameters"), rows, left=2))
    return body + _memory(found, config) + code("csrc/model/decoder.cpp", "freedive/reference/decoder.py", "freedive/model/config.py")


def _memory(found: Found, config: DecoderConfig) -> str:
    from freedive.model import plan

    tokens_at_once = found.config("pretrain").get("micro_tokens", 4096)
    rows = [(name, human_bytes(size)) for name, size in plan(config, tokens_at_once, 512).rows if size]
    return details(f"Memory while training, {tokens_at_once:,} tokens at a time", table(("for", "bytes"), rows))


def _parameter_groups(path: Path) -> list[tuple[str, tuple[int, ...], int, int]]:
    """(name, shape, parameters, how many layers have it) from the header of a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    groups: dict[tuple[str, tuple[int, ...]], int] = {}
    for name in sorted(k for k in header if k != "__metadata__"):
        parts = ["*" if part.isdigit() else part for part in name.split(".")]
        key = (".".join(parts), tuple(header[name]["shape"]))
        groups[key] = groups.get(key, 0) + 1
    return [(name, shape, math.prod(shape), copies) for (name, shape), copies in groups.items()]


def base_samples(found: Found) -> str | None:
    """1.5: what the base model dreams."""
    samples = found.json("pretrain", "samples.json")
    if not samples:
        return None
    body = paragraph(
        "The base model answers nothing: it continues documents. From an empty page it dreams new ones in the style of "
        "its training data, token by token, each drawn at random with the probability the network gives it. The facts in "
        "them are as dreamt as the words."
    )
    for sample in samples[:8]:
        start = sample["prompt"]
        body += quote(start + sample["text"], f"continues {start!r}" if start else "from an empty page")
    exam = next((e for e in found.exams if e.name.endswith("base")), None)
    if exam and exam.answers:
        shown = [[("user", a.question), ("assistant", a.shown())] for a in (exam.answers[0], exam.answers[-1])]
        stops, _ = exam.share(of="stopped")
        body += "<h3>The base model in an assistant's seat</h3>" + paragraph(
            f"Put into the form of a conversation, it has never seen what follows. It ended its turn in {percent(stops)} "
            f"of {number(len(exam.answers))} questions."
        )
        body += "".join(chat(turns) for turns in shown)
    return body + code("freedive/inference/engine.py", "csrc/cpu/sampling.cpp")
