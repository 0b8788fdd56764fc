"""Static pages without scripts or anything from elsewhere: the waterfall, and shards to look at."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from freedive.runs import human_bytes

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;width:100%}td,th{padding:.2rem .6rem;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}tr.step td{font-weight:600;background:#f4f4f4}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f7f7f7;padding:.6rem;border-left:3px solid #bbb;font-size:.85rem}
.bar{background:#4a7;height:.7rem}.bar i{display:block;height:100%;background:#d66;float:right}small{color:#666;overflow-wrap:anywhere}
@media (prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre,tr.step td{background:#242424}td,th{border-color:#444}}"""


def document(title: str, body: str) -> str:
    """A whole page around `body`, which must be HTML already."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    return f"<!doctype html><html lang=en><head>{head}<title>{_e(title)}</title><style>{STYLE}</style></head><body><h1>{_e(title)}</h1>{body}</body></html>\n"


def waterfall_page(result: dict[str, Any], samples: Iterable[dict[str, str]]) -> str:
    """The counts of waterfall.json as a table with bars, and the sample texts below each rule."""
    by_reason: dict[str, list[dict[str, str]]] = {}
    for sample in samples:
        by_reason.setdefault(sample["reason"], []).append(sample)
    total, rows = max(1, result["documents_in"]), []
    rows.append(_row("step", "input", result["documents_in"], result["bytes_in"], total))
    for step in result["steps"]:
        rows.append(_row("step", step["step"], step["documents_out"], step["bytes_out"], total, trimmed=step["bytes_trimmed"]))
        for rule, count in step["removed"].items():
            rows.append(_row("", f"{step['step']}/{rule}", -count["documents"], -count["bytes"], total, by_reason.get(f"{step['step']}/{rule}", ())))
    head = "<tr><th>step, and what it removed</th><th class=n>documents</th><th class=n>of input</th><th class=n>bytes</th><th></th></tr>"
    recipe = f"<p><small>recipe {_e(result.get('recipe', ''))}</small></p>"
    return document("What was removed, and why", f"{recipe}<table>{head}{''.join(rows)}</table>")


def _row(kind: str, name: str, documents: int, size: int, total: int, samples: Iterable[dict[str, str]] = (), trimmed: int = 0) -> str:
    shown = "".join(f"<details><summary><small>{_e(s['url'])}</small></summary>{_why(s)}<pre>{_e(s['text'])}</pre></details>" for s in samples)
    if shown:
        shown = f"<details><summary>{_e(name)}</summary>{shown}</details>"
    note = f" <small>(cut from pages that stay: {human_bytes(trimmed)})</small>" if trimmed > 0 else ""
    share = abs(documents) / total
    colour = "" if documents >= 0 else "background:#d66"
    bar = f'<div class=bar style="width:{100 * share:.1f}%;min-width:1px;{colour}"></div>'
    amount = f"{'-' if size < 0 else ''}{human_bytes(abs(size))}"
    return (
        f'<tr class="{kind}"><td>{shown or _e(name)}{note}</td><td class=n>{documents:,}</td>'
        f"<td class=n>{100 * documents / total:.1f} %</td><td class=n>{amount}</td><td style='width:20%'>{bar}</td></tr>"
    )


def _why(sample: dict[str, str]) -> str:
    return f"<p><small>{_e(sample['why'])}</small></p>" if sample.get("why") else ""


def look_page(title: str, rows: Iterable[dict[str, Any]]) -> str:
    """Documents or rejected texts, one below the other."""
    parts = []
    for number, row in enumerate(rows, 1):
        facts = [f"{key}: {row[key]}" for key in row if key not in ("text", "url") and row[key] not in ("", None)]
        parts.append(
            f"<h3>{number}. {_e(str(row.get('url', '')))}</h3><p><small>{_e('; '.join(facts))}</small></p><pre>{_e(str(row.get('text', '')))}</pre>"
        )
    return document(title, "".join(parts))


def _e(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())
