"""The oracle's half of test_datatrove.py: runs where datatrove is installed, and imports nothing of freedive.

Reads one JSON request, prints one JSON answer as its last line:

    {"do": "step", "name": "c4", "texts": [...], "lid": FILE} -> [[text or null, reason], ...]     one step on every text by itself
    {"do": "pipeline", "rows": [...], "lid": FILE, "folder": F} -> [[step, reason, text], ...]    its executor, from JSONL to JSONL
    {"do": "scrub", "texts": [...]} -> [text, ...]                                                   a new formatter for every text
    {"do": "signatures", "texts": [...], "folder": F} -> [[112 numbers] or null, ...]                the files of MinHash's first stage
    {"do": "urls", "urls": [...], "lists": {name: [...]} or null} -> [reason, ...]                   null: its own lists
"""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
from loguru import logger

logger.remove()
from datatrove.data import Document  # noqa: E402
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter, LanguageFilter  # noqa: E402


def filters(lid: str, writer: Any = lambda step: None) -> dict[str, Any]:
    """FineWeb's, in order; with the model of the file `lid`, where datatrove would download one."""
    import datatrove.utils.lid as models
    from fasttext.FastText import _FastText

    model = _FastText(lid)
    models.FastTextLID.model = property(lambda self: model)
    return {
        "language": LanguageFilter(languages=["en"], exclusion_writer=writer("language")),
        "gopher_repetition": GopherRepetitionFilter(exclusion_writer=writer("gopher_repetition")),
        "gopher_quality": GopherQualityFilter(exclusion_writer=writer("gopher_quality")),
        "c4": C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=writer("c4")),
        "fineweb": FineWebQualityFilter(exclusion_writer=writer("fineweb")),
    }


def step(name: str, texts: list[str], lid: str) -> list:
    one, answers = filters(lid)[name], []
    for text in texts:
        document = Document(text=text, id="")
        try:
            decision = one.filter(document)
        except ZeroDivisionError:  # of texts without words or lines
            decision = (False, "ZeroDivisionError")
        kept, reason = decision if isinstance(decision, tuple) else (decision, "")
        answers.append([document.text if kept else None, reason])
    return answers


def pipeline(rows: list[dict], lid: str, folder: str) -> list:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    place = Path(folder)
    (place / "in").mkdir()
    (place / "in" / "rows.jsonl").write_text("".join(json.dumps({"text": text, "id": str(i)}) + "\n" for i, text in enumerate(row["text"] for row in rows)))
    writer = lambda step: JsonlWriter(str(place / "removed" / step), compression=None)
    chain = list(filters(lid, writer).values())
    LocalPipelineExecutor(
        [JsonlReader(str(place / "in")), *chain, JsonlWriter(str(place / "kept"), compression=None)], logging_dir=str(place / "logs")
    ).run()
    answers: list = [None] * len(rows)
    for file in place.glob("**/*.jsonl"):
        if file.parent.name == "in":
            continue
        step = "" if file.parent.name == "kept" else file.parent.name
        for line in file.read_text().splitlines():
            row = json.loads(line)
            answers[int(row["id"])] = [step, row.get("metadata", {}).get("filter_reason", ""), row["text"]]
    return answers


def scrub(texts: list[str]) -> list[str]:
    from datatrove.pipeline.formatters import PIIFormatter

    return [PIIFormatter().format(text) for text in texts]


def signatures(texts: list[str], folder: str) -> list:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1", precision=64))  # FineWeb's
    MinhashDedupSignature(output_folder=folder, config=config).run(Document(text=text, id="") for text in texts)
    found: list = [[None] * 14 for _ in texts]
    for bucket in range(14):
        for *hashes, document in struct.iter_unpack("<8QI", Path(folder, f"bucket_{bucket:03d}", "00000.minhash.sig").read_bytes()):
            found[document][bucket] = hashes
    return [None if row[0] is None else sum(row, []) for row in found]


def urls(urls: list[str], lists: dict[str, list[str]] | None) -> list[str]:
    import tldextract
    from datatrove.pipeline.filters import URLFilter

    names = {"domains": "extra_domains", "urls": "extra_urls"}
    given = {names.get(name, name): entries for name, entries in (lists or {}).items()}
    step = URLFilter(use_integrated_lists=lists is None, **given)
    step.tldextractor = tldextract.TLDExtract(suffix_list_urls=())  # the list in the package, not the network's
    answers = []
    for url in urls:
        decision = step.filter(Document(text="", id="", metadata={"url": url}))
        answers.append(decision[1] if isinstance(decision, tuple) else "")
    return answers


if __name__ == "__main__":
    request = json.load(sys.stdin)
    print(json.dumps({"step": step, "pipeline": pipeline, "scrub": scrub, "signatures": signatures, "urls": urls}[request.pop("do")](**request)))
