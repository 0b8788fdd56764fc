"""The HTML of the report: a handful of helpers that escape everything, and one style sheet. Knows nothing of stages.

One file, no scripts, nothing loaded from elsewhere: it can be mailed, archived and read on a phone, in light or dark.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff\ud800-\udfff]")


def text(value: Any) -> str:
    """Any value as HTML text."""
    return html.escape(str(value))


def number(value: Any, digits: int = 3) -> str:
    """1234567 -> "1,234,567"; 0.123456 -> "0.123"; None -> "–"."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) < 10 else f"{value:.1f}"


def percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def paragraph(words: str) -> str:
    """`words` may hold `code` between backticks."""
    return "<p>" + re.sub("`([^`]+)`", r"<code>\1</code>", text(words)) + "</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """A table; the first `left` columns are words, the others numbers, set to the right. Strings are shown as they are."""

    def cell(tag: str, at: int, value: Any) -> str:
        shown = text(value) if isinstance(value, str) else number(value)
        return f"<{tag}>{shown}</{tag}>" if at < left else f'<{tag} class="n">{shown}</{tag}>'

    head = "".join(cell("th", i, h) for i, h in enumerate(header))
    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Mapping[str, Any]) -> str:
    """A few big numbers with captions."""
    items = "".join(f"<div><b>{number(value)}</b><span>{text(name)}</span></div>" for name, value in pairs.items())
    return f'<div class="facts">{items}</div>'


def quote(words: str, caption: str = "", kind: str = "") -> str:
    """A text somebody or some model wrote, with its line breaks."""
    top = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure class="quote {text(kind)}">{top}<pre>{text(words)}</pre></figure>'


def chat(turns: Iterable[tuple[str, str]], caption: str = "") -> str:
    """A conversation as bubbles; turns are (role, words)."""
    bubbles = "".join(f'<div class="turn {text(role)}"><i>{text(role)}</i>{text(words)}</div>' for role, words in turns)
    note = f'<div class="note">{text(caption)}</div>' if caption else ""
    return f'<div class="chat">{bubbles}{note}</div>'


def details(summary: str, body: str) -> str:
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def code(*names: str) -> str:
    """Where the reader finds the code."""
    return '<p class="code">The code: ' + ", ".join(f"<code>{text(name)}</code>" for name in names) + "</p>"


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """Horizontal bars: (label, share of the whole width 0..1, what stands at the end)."""
    items = "".join(
        f'<div class="bar"><span>{text(label)}</span><i style="width:{100 * share:.2f}%"></i><em>{text(note)}</em></div>'
        for label, share, note in rows
    )
    return f'<div class="bars">{items}</div>'


def section(anchor: str, title: str, body: str) -> str:
    return f'<section id="{text(anchor)}"><h2>{text(title)}</h2>{body}</section>'


def page(title: str, introduction: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole document; sections are (anchor, title, body). Control characters, which HTML forbids, become a middle dot."""
    contents = "".join(f'<li><a href="#{text(anchor)}">{text(name)}</a></li>' for anchor, name, _ in sections)
    body = "\n".join(section(*part) for part in sections)
    document = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><header><h1>{text(title)}</h1>{introduction}"
        f"<nav><ul>{contents}</ul></nav></header>\n<main>{body}</main></body></html>\n"
    )
    return _UNSEEN.sub("·", document)


STYLE = """
:root{color-scheme:light dark;--bg:#fdfdfb;--fg:#1c1d1f;--dim:#63666b;--line:#d9dadd;--card:#f3f3ef;--user:#e3edfb;
--bot:#e9f4e6;--s0:#1f6fd6;--s1:#d2691e;--s2:#2e8b57;--s3:#9b4dca;--bad:#c0392b}
@media (prefers-color-scheme:dark){:root{--bg:#16181b;--fg:#e6e6e3;--dim:#9da1a8;--line:#3a3d42;--card:#202327;--user:#1e3350;
--bot:#21392a;--s0:#6cb0ff;--s1:#f0a35e;--s2:#6fcf97;--s3:#c89bf0;--bad:#ff8a7a}}*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,sans-serif}
header,main{max-width:52rem;margin:0 auto;padding:1rem}h1{line-height:1.2;margin:.5rem 0}h2{margin:0 0 .5rem;line-height:1.25}
h3{margin:1.3rem 0 .3rem;font-size:1.02rem}section{border-top:1px solid var(--line);padding:1.6rem 0 .8rem}
nav ul{columns:2 14rem;padding-left:1.2rem}a{color:var(--s0)}code,pre{font-family:ui-monospace,monospace;font-size:.87em}
p.code,.note,figcaption,caption{color:var(--dim);font-size:.88rem}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;margin:.5rem 0}
th,td{padding:.22rem .7rem .22rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.facts{display:flex;flex-wrap:wrap;gap:.6rem 1.6rem;margin:.8rem 0}.facts b{display:block;font-size:1.35rem;line-height:1.2}
.facts span{color:var(--dim);font-size:.85rem}figure{margin:.6rem 0}
.quote pre,.ids{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border-radius:.4rem;padding:.6rem .8rem;
margin:.2rem 0;max-height:22rem;overflow-y:auto}.quote.bad pre{border-left:4px solid var(--bad)}.chat{margin:.7rem 0}
.turn{background:var(--card);border-radius:.7rem;padding:.4rem .8rem;margin:.25rem 0;width:fit-content;max-width:88%;
white-space:pre-wrap;overflow-wrap:anywhere}.turn i{display:block;font-size:.72rem;color:var(--dim)}
.turn.user{background:var(--user);margin-left:auto}.turn.assistant{background:var(--bot)}details{margin:.6rem 0}
summary{cursor:pointer;color:var(--s0)}.tokens{background:#fff;border-radius:.4rem;padding:.5rem;margin:.4rem 0}
.bar{display:grid;grid-template-columns:9.5rem 1fr;align-items:center;gap:.1rem .6rem;font-size:.88rem;margin:.2rem 0}
.bar i{background:var(--s0);height:.8rem;border-radius:.2rem;min-width:1px}
.bar em{grid-column:2;font-style:normal;color:var(--dim)}svg.chart{width:100%;max-width:40rem;height:auto;display:block}
svg.chart text{fill:var(--fg);font:12px system-ui,sans-serif}svg.chart .grid{stroke:var(--line)}
svg.chart polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}.legend{font-size:.85rem}.legend span{margin-right:1.2rem}
.legend b{display:inline-block;width:1.1rem;height:.25rem;vertical-align:middle;margin-right:.35rem}
"""
