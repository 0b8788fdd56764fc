"""The report's first chapter: from pages to a base model (talk 1.1 to 1.5).

Each function gives the HTML of one section, or None if what it shows is not there.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_texts
from freedive.model import DecoderConfig
from freedive.model.config import from_hf
from freedive.runs import UserError, human_bytes
from freedive.runs.chart import chart
from freedive.runs.page import Reply, asked, bars, cards, code, details, facts, lead, number, paragraph, percent, quote, table
from freedive.tokenizer import Tokenizer, render
from freedive.tokenizer.colour import HTML_COLOURS, segments, to_html

from .found import Found, jsonl

SAMPLE_CHARACTERS = 420
PARTS = {  # of the network, and how the names of their tensors begin or end
    "normalisation": ("norm", "ln_"),
    "token vectors": ("embed_tokens", "wte"),
    "positions": ("wpe",),
    "output": ("lm_head",),
    "attention": ("attn",),
    "MLP": ("mlp",),
}
_SENTENCE = re.compile(r"[^\s.!?][^\n.!?]{18,}[.!?](?=\s|$)")  # of 20 characters or more, so that finding it says something
LARGEST_SEARCH = 64 << 20  # bytes of training text in which dreamt sentences are looked up
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
    body = lead(
        "A language model learns from text, and much of what a crawler brings home is not worth learning from: menus, "
        "cookie banners, spam, copies, other languages. So the pages run through a row of filters. `extract` takes the "
        "text out of the HTML; each of the others throws away one kind of page, and notes the rule it broke.",
        "How much is left at the end, and which step took the most. Then open the rejected pages: would you have thrown them away?",
    )
    body += facts({"raw pages": waterfall["documents_in"], "raw bytes": human_bytes(waterfall["bytes_in"]),
                   "documents left": waterfall["documents_out"], "clean text": human_bytes(waterfall["bytes_out"])})  # fmt: skip
    body += "<h3>The waterfall: what is left after each step</h3>"
    body += bars([("at the start", 1.0, f"{total:,} pages, {human_bytes(waterfall['bytes_in'])}"), *kept])
    body += details("What was removed, by rule", table(("step", "rule", "pages", "bytes", "of all pages"), rows, left=2))
    body += _against_truth(found)
    samples: dict[str, str] = {}
    for row in found.lines("data", "rejected.jsonl"):
        caption = f"{row['reason']} · {row.get('url') or row.get('source', '')}"
        samples.setdefault(row["reason"], quote(row["text"][:600], caption))
    if samples:
        body += details(f"A rejected page for each of {len(samples)} reasons", "".join(samples.values()))
    first = next(iter(iter_texts(found.folders["data"])), "")
    cut = " …" if len(first) > SAMPLE_CHARACTERS else ""
    body += "<h3>A document that stayed</h3>" + quote(first[:SAMPLE_CHARACTERS] + cut)
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
    body = lead(
        "The model sees numbers, not letters. The tokenizer starts from single bytes and joins the most frequent neighbours "
        "again and again, until its vocabulary is full: then a common word is one number, and a rare one is a few.",
        "Each colour is one token. Which words are whole, and which are in pieces? Point at a token to see its number and "
        "bytes, or open the list of numbers: that list is all the model ever gets.",
    )
    numbers: dict[str, Any] = {"tokens in the vocabulary": tok.vocab_size}
    if measured.get("bytes_per_token"):
        numbers["bytes of unseen text in a token"] = f"{measured['bytes_per_token']:.2f}"
    body += facts(numbers)
    sample = _sample_text(found)
    if sample:
        ids = tok.encode(sample)
        body += paragraph(f"{len(sample):,} characters, {len(sample.encode('utf-8', 'replace')):,} bytes, {len(ids):,} tokens:")
        body += to_html(tok, ids) + details(f"The same {len(ids)} tokens as the model sees them", _ids(tok, ids))
    longest = sorted((t for t in _ordinary(tok)), key=len, reverse=True)[:24]
    if longest and len(longest[0]) > 1:
        body += paragraph("The longest pieces it learned: " + ", ".join(f"`{t}`" for t in longest if "`" not in t))
    if tok.chat is not None:
        ids, mask = render(tok, TALK_CHAT)
        body += "<h3>A conversation is tokens too</h3>" + paragraph(
            "Special tokens (dark), which no text can contain, mark who speaks. Fine-tuning (chapter 2) learns only what is "
            "underlined in red: the assistant's words and its end of turn. This is the example of the talk."
        )
        body += to_html(tok, ids, mask) + details(f"Its {len(ids)} numbers", _ids(tok, ids))
    return body + code("freedive/tokenizer/train.py", "freedive/tokenizer/chat.py")


def _ids(tok: Tokenizer, ids: list[int]) -> str:
    """The numbers, in the colours that `to_html` gives their texts."""
    spans = []
    for i, (_, members) in enumerate(segments(tok, ids)):
        colours = "background:#4a4a4a;color:#fff" if members[0] in tok.special_ids else f"background:{HTML_COLOURS[i % len(HTML_COLOURS)]};color:#111"
        spans.append(f'<span style="{colours}">{" ".join(map(str, members))}</span>')
    return f'<pre class="ids" tabindex="0">{" ".join(spans)}</pre>'


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
    body = lead(
        "Training shows the network a stretch of text, asks for the next token at every position, and moves every "
        "parameter a little so that the token that really came becomes likelier. Nobody explains words or grammar: guessing "
        "the next token well is all that is asked for, step after step. The loss measures the surprise; less is better.",
        "The loss falls fast while the network learns which tokens are common and which follow each other, then slowly, "
        "while it learns what the pages say. The dots are pages it never trains on: if they rose while the line falls, it "
        "would be learning pages by heart instead of what they have in common.",
    )
    names = {"train_tokens": "training tokens", "steps": "steps", "val_loss": "loss on unseen pages, nats a token"}
    names |= {"val_bits_per_byte": "bits per byte of unseen pages"}
    body += facts({caption: metrics[name] for name, caption in names.items() if metrics.get(name) is not None})
    curves = {"training": [(row["step"], row["loss"]) for row in log if row.get("loss") is not None],
              "unseen pages": [(row["step"], row["val_loss"]) for row in log if row.get("val_loss") is not None]}  # fmt: skip
    body += chart(curves, "step", "loss, nats a token", low=0)
    if tok is not None and curves["training"]:
        first, last = curves["training"][0][1], (curves["unseen pages"] or curves["training"])[-1][1]
        body += paragraph(
            f"A blind guess among {tok.vocab_size:,} tokens scores ln {tok.vocab_size:,} = {math.log(tok.vocab_size):.2f}; the log "
            f"begins with {first:.2f}. The last {'on unseen pages' if curves['unseen pages'] else 'value'} is {last:.2f}: the token that "
            f"really comes next now gets a probability of e to the minus {last:.2f}, that is {percent(math.exp(-last))} (the geometric mean), "
            f"where a blind guess gives it {percent(1 / tok.vocab_size, 2)}."
        )
    body += _mixture(found)
    return body + speed(found, "pretrain") + code("freedive/pretrain/stage.py", "freedive/train/loop.py")


def _mixture(found: Found) -> str:
    """Where the kind of each page is known: what the two curves are made of, which is why one may lie below the other."""
    kinds = {row["url"]: row["kind"] for row in found.lines("crawl", "truth.jsonl")}
    if not kinds or "data" not in found.folders:
        return ""
    shown = {}
    for split in ("train", "val"):
        sizes: Counter[str] = Counter()
        for file in sorted(found.folders["data"].glob(f"{split}-*.jsonl")):
            for row in jsonl(file):
                sizes[kinds.get(row.get("url"), "?")] += len(row["text"])
        shown[split] = ", ".join(f"{percent(size / sizes.total())} {kind.replace('_', ' ')}" for kind, size in sizes.most_common(4))
    if not all(shown.values()):
        return ""
    return paragraph(
        f"Which curve lies lower says little here, for the two are not the same mixture. Training pages: {shown['train']}. "
        f"Unseen pages: {shown['val']}. And an unseen page may repeat what other pages say."
    )


def speed(found: Found, stage: str) -> str:
    """Tokens a second and the share of the machine's float32 peak, in a sentence; the table is in "How long it took"."""
    rates, peaks = measured_speed(found, stage)
    if rates is None:
        return ""
    words = f"How fast: {rates[0]:,.0f} tokens a second"
    if peaks is not None:
        words += f", {100 * peaks[0]:.0f} % of what this machine's float32 units can do at most ({100 * peaks[1]:.0f} to {100 * peaks[2]:.0f} % in the middle four fifths)"
    return paragraph(words + ".")


def measured_speed(found: Found, stage: str) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    """Tokens a second, and the share of the peak (0..1): each the median, 10th and 90th percentile; None if not measured."""
    lines = found.lines(stage, "timings.jsonl")
    rates = [row["tokens_per_second"] for row in lines if "tokens_per_second" in row]
    shares = [row["peak_share"] for row in lines if "peak_share" in row]
    return (_spread(rates) if len(rates) > 1 else None), (_spread(shares) if len(shares) > 1 else None)


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
    body = lead(
        f"The network is a fixed mathematical expression of its input tokens and {total:,} parameters, the numbers that training "
        f"moves. Each token becomes a vector of {config.d_model} numbers, which passes through {config.n_layer} layers; in each, "
        "attention lets a position look back at earlier ones, and a small network (the MLP) works on each position alone. At the "
        "end stands one number for every token of the vocabulary: how likely it comes next.",
        "Where the parameters are. GPT-2 had 1.5 billion of them, Llama 3 has up to 405 billion, in the same kinds of parts.",
    )
    body += facts({"parameters": total, "layers": config.n_layer, "width": config.d_model, "attention heads": config.n_head,
                   "longest input, tokens": config.max_positions})  # fmt: skip
    parts: Counter[str] = Counter()
    for name, _, count, copies in groups:
        parts[_part(name)] += count * copies
    body += bars([(part, count / total, f"{count:,} ({percent(count / total)})") for part, count in parts.most_common()])
    rows = [(name, " x ".join(map(str, shape)), copies, count * copies) for name, shape, count, copies in groups]
    body += details("Every parameter", table(("tensor", "shape", "times", "parameters"), rows, left=2))
    return body + _memory(found, config) + code("csrc/model/decoder.cpp", "freedive/reference/decoder.py", "freedive/model/config.py")


def _memory(found: Found, config: DecoderConfig) -> str:
    from freedive.model import plan

    tokens_at_once = found.config("pretrain").get("micro_tokens", 4096)
    rows = [(name, human_bytes(size)) for name, size in plan(config, tokens_at_once, 512).rows if size]
    return details(f"Memory while training, {tokens_at_once:,} tokens at a time", table(("for", "bytes"), rows))


def _part(name: str) -> str:
    """What a tensor is for, from its name in the checkpoints of any of the architectures that freedive knows."""
    for part, pieces in PARTS.items():
        if any(piece in name for piece in pieces):
            return part
    return "other"


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
    memory = _training_text(found)
    body = lead(
        "The base model answers nothing: it is a simulator of the documents it was trained on. From an empty page it dreams a "
        "new one, token by token, each drawn at random with the probability the network gives it; from a beginning, it goes on.",
        "The form is that of the training pages, while the facts may be as dreamt as the words."
        + (" Marked sentences stand word for word in the training text: the model recites. The others it made up." if memory else ""),
    )
    said = seen = 0
    for sample in samples[:8]:
        start = sample["prompt"]
        parts, sentences, recited = _recited(sample["text"], memory)
        said, seen = said + sentences, seen + recited
        begin = [(start, "b")] if start else []
        body += quote([*begin, *parts], f"continues “{start}”" if start else "from an empty page")
    if memory and said:
        body += paragraph(f"Of {said} whole sentences above, {seen} stand word for word in the training text.")
    body += _in_the_seat(found)
    return body + code("freedive/inference/engine.py", "csrc/cpu/sampling.cpp")


def _in_the_seat(found: Found) -> str:
    """The base model asked as if it were an assistant."""
    exam = found.exam("base")
    if exam is None:
        return ""
    stops, _ = exam.share(of="stopped")
    replies = (exam.answers[0], exam.answers[len(exam.answers) // 2], exam.answers[-1])
    shown = {a.question: asked(a.question, Reply("base model", a.shown())) for a in replies}
    body = "<h3>The base model in an assistant's seat</h3>" + paragraph(
        "Put into the form of a conversation, whose special tokens it has never seen, it just goes on writing. It ended "
        f"its turn in {percent(stops)} of {number(len(exam.answers))} questions; the rest was cut off (…)."
    )
    return body + cards(shown.values())


def _training_text(found: Found) -> str:
    """What the base model read, if it is here and not too much to search."""
    files = sorted(found.folders["data"].glob("train-*.jsonl")) if "data" in found.folders else []
    if not files or sum(file.stat().st_size for file in files) > LARGEST_SEARCH:
        return ""
    return "\n".join(row["text"] for file in files for row in jsonl(file))


def _recited(words: str, memory: str) -> tuple[list[tuple[str, str]], int, int]:
    """The words in parts for `quote`, sentences found in `memory` marked; how many whole sentences there are, and how many of them are found."""
    parts: list[tuple[str, str]] = []
    said = seen = at = 0
    for match in _SENTENCE.finditer(words):
        said += 1
        if match.group() in memory:
            seen += 1
            parts += [(words[at : match.start()], ""), (match.group(), "mark")]
            at = match.end()
    return [*parts, (words[at:], "")], said, seen
