"""How much of a page's text extraction finds, and how much else it takes: word-level F1 against the source that a page was made from,
and the words of Common Crawl's own WET record that the plain mode recovers.

    python benchmarks/extraction.py --pairs python311_docs_pairs.jsonl.gz --warc whirlwind.warc.gz --wet whirlwind.warc.wet.gz

`--pairs` has rows {"name", "html", "rst"}. Words are runs of letters, digits and _, without case, counted as a bag, so order is not
judged. `f1` compares with the words that a reader of the page sees: reST's own markup (names of directives and roles, options, labels,
comments, targets of links, index entries) is taken out of the source first, by the rules of the language. `f1_raw` compares with the source as it is,
whose markup no extractor can find on the page. Each is the mean over the pages; `_all` pools the words of all pages.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from freedive.data.extract import extract
from freedive.data.read import read_records
from freedive.data.record import Record
from freedive.data.texts import iter_rows

WORD = re.compile(r"\w+")
HIDDEN = {"index", "toctree", "contents", "highlight", "currentmodule", "sectionauthor", "tabularcolumns", "image", "testsetup", "testcleanup"}
BARE = {"code-block", "sourcecode", "doctest", "testcode", "testoutput", "only", "parsed-literal"}  # whose argument is not shown, but whose block is
EXPLICIT = re.compile(r"( *)\.\.(?: +(.*))?$")
DIRECTIVE = re.compile(r"([\w:-]+)::\s*(.*)$")
FIELD = re.compile(r" *:[\w-]+:( |$)")
ROLE = re.compile(r":[\w:+-]+:`([^`]*)`")
LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{1,2}")
TARGET = re.compile(r"^(.*\S)\s*<[^>]*>$", re.S)


def visible(rst: str) -> str:
    """The text of a reST page without its markup."""
    lines: list[str] = []
    hidden: int | None = None  # indentation of what is hidden, with all that is indented more
    for line in rst.split("\n"):
        indent = len(line) - len(line.lstrip())
        if hidden is not None:
            if not line.strip() or indent > hidden:
                continue
            hidden = None
        if found := EXPLICIT.match(line):
            rest = found[2] or ""
            if directive := DIRECTIVE.match(rest):
                name, argument = directive.groups()
                if name in HIDDEN:
                    hidden = indent
                else:
                    lines.append("" if name in BARE else argument)
            elif rest.startswith("["):  # a footnote or citation
                lines.append(rest)
            else:  # a comment, a label or a substitution
                hidden = indent
        elif not FIELD.match(line):
            lines.append(line)
    text = ROLE.sub(lambda m: _title(m[1]), "\n".join(lines))
    return LINK.sub(r"\1", text)


def _title(role: str) -> str:
    """What a role shows: the title before <target>, or the last part of ~a.b.c."""
    with_target = TARGET.match(role)
    if with_target:
        return with_target[1]
    return role.rpartition(".")[2] if role.startswith("~") else role


def words(text: str) -> Counter[str]:
    return Counter(WORD.findall(text.lower()))


def agreement(found: Counter[str], gold: Counter[str]) -> tuple[float, float, float]:
    """(precision, recall, F1) of bags of words."""
    both = sum((found & gold).values())
    return both / max(1, sum(found.values())), both / max(1, sum(gold.values())), 2 * both / max(1, sum(found.values()) + sum(gold.values()))


def pairs(path: Path, extractor) -> dict[str, float]:
    results, raw = [], []
    all_found, all_gold = Counter(), Counter()
    for number, row in iter_rows(path):
        text = extract(Record(row["name"], path.name, row["html"].encode(), html=True), extractor)[0] or ""
        found, gold = words(text), words(visible(row["rst"]))
        results.append(agreement(found, gold))
        raw.append(agreement(found, words(row["rst"]))[2])
        all_found.update({(number, word): count for word, count in found.items()})
        all_gold.update({(number, word): count for word, count in gold.items()})
    n = len(results)
    precision, recall, f1 = (sum(r[i] for r in results) / n for i in range(3))
    whole = agreement(all_found, all_gold)[2]
    numbers = {"precision": precision, "recall": recall, "f1": f1, "f1_all": whole, "f1_raw": sum(raw) / n}
    return {"pages": n, **{name: round(value, 4) for name, value in numbers.items()}}


def recovered(warc: Path, wet: Path) -> dict[str, float]:
    """Part of the WET records' words, as a bag, that the plain text of the same URLs holds."""
    gold = {r.url: extract(r)[0] or "" for r in read_records(wet, wet.name, 10**8) if r.data}
    both = total = found = 0
    for record in read_records(warc, warc.name, 10**8):
        if record.url in gold:
            mine, theirs = words(extract(record, "plain")[0] or ""), words(gold[record.url])
            both += sum((mine & theirs).values())
            total += sum(theirs.values())
            found += sum(mine.values())
    return {"words": total, "recovered": round(both / max(1, total), 4), "precision": round(both / max(1, found), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--warc", type=Path, required=True)
    parser.add_argument("--wet", type=Path, required=True)
    c = parser.parse_args()
    summary: dict[str, float] = {}
    for extractor in ("resiliparse", "trafilatura", "plain"):
        result = pairs(c.pairs, extractor)
        print(json.dumps({"case": "pairs", "extractor": extractor, **result}), flush=True)
        summary[f"f1_{extractor}"] = result["f1"]
    wet = recovered(c.warc, c.wet)
    print(json.dumps({"case": "wet", **wet}))
    print(json.dumps({"case": "summary", **summary, "wet_recovered": wet["recovered"]}))


if __name__ == "__main__":
    main()
