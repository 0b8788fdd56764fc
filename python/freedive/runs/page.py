"""The HTML of a report (of the dive, of an evaluation): a handful of helpers that escape everything, and one style sheet. Knows nothing of stages.

One file, no scripts, nothing loaded from elsewhere: it can be mailed, archived and read on a phone, in light or dark.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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


def lead(happened: str, look: str) -> str:
    """How a section begins: what happened in this step, and what in it is worth a look."""
    return paragraph(happened) + paragraph(look).replace("<p>", '<p class="look"><b>What to look at.</b> ', 1)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """A table; the first `left` columns are words, the others numbers, set to the right. Strings are shown as they are."""

    def cell(at: int, value: Any) -> str:
        shown = text(value) if isinstance(value, str) else number(value)
        return f"<td>{shown}</td>" if at < left else f'<td class="n">{shown}</td>'

    head = "".join(_head(h, "" if i < left else ' class="n"') for i, h in enumerate(header))
    body = "".join("<tr>" + "".join(cell(i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def _head(words: str, attributes: str = "") -> str:
    return f'<th scope="col"{attributes}>{text(words)}</th>' if words else f"<td{attributes}></td>"


def facts(pairs: Mapping[str, Any]) -> str:
    """A few big numbers with captions."""
    items = "".join(f"<div><b>{number(value)}</b><span>{text(name)}</span></div>" for name, value in pairs.items())
    return f'<div class="facts">{items}</div>'


def quote(words: str | Iterable[tuple[str, str]], caption: str = "", kind: str = "") -> str:
    """A text somebody or some model wrote, with its line breaks; or its parts as (words, "" or "b" or "mark")."""
    parts = [(words, "")] if isinstance(words, str) else words
    inside = "".join(f"<{tag}>{text(part)}</{tag}>" if tag else text(part) for part, tag in parts)
    top = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure class="quote {text(kind)}">{top}<pre tabindex="0">{inside}</pre></figure>'


def chat(turns: Iterable[tuple[str, str]], caption: str = "") -> str:
    """A conversation as bubbles; turns are (role, words)."""
    bubbles = "".join(_turn(role, role, words) for role, words in turns)
    note = f'<div class="note">{text(caption)}</div>' if caption else ""
    return f'<div class="chat">{bubbles}{note}</div>'


def _turn(role: str, name: str, words: str) -> str:
    return f'<div class="turn {text(role)}"><i>{text(name)}</i>{text(words)}</div>'


@dataclass(frozen=True)
class Reply:
    """What one model said to a question, and what is to be said of it."""

    who: str
    words: str
    note: str = ""
    good: bool | None = None  # None: nobody judges it


def asked(question: str, *replies: Reply) -> str:
    """A question and what one or more models replied to it: a card of `cards`."""
    marks = {True: '<b class="good">✓</b> ', False: '<b class="bad">✗</b> ', None: ""}
    body = _turn("user", "user", question)
    for r in replies:
        body += _turn("assistant", r.who, r.words)
        body += f'<div class="note">{marks[r.good]}{text(r.note)}</div>' if r.note or r.good is not None else ""
    return f'<div class="chat">{body}</div>'


def cards(items: Iterable[str]) -> str:
    """Small pieces of HTML side by side, as many as the screen is wide for."""
    body = "".join(items)
    return f'<div class="cards">{body}</div>' if body else ""


@dataclass(frozen=True)
class Share:
    """A measured share, 0..1, with the ends of its interval, and what is written beside it."""

    name: str
    share: float
    low: float
    high: float
    shown: str
    note: str = ""
    colour: int = 0  # 0 to 3


def shares(header: Sequence[str], groups: Sequence[tuple[str, Sequence[Share]]]) -> str:
    """A table of bars with whiskers; a group has one label and a bar for each of its shares. Three columns, the first two named."""
    body = ""
    for label, group in groups:
        for i, s in enumerate(group):
            first = f'<th scope="rowgroup" rowspan="{len(group)}">{text(label)}</th>' if i == 0 else ""
            bar = f'<i style="width:{100 * s.share:.2f}%;background:var(--s{s.colour})"></i>'
            whisker = f'<u style="left:{100 * s.low:.2f}%;width:{100 * (s.high - s.low):.2f}%"></u>'
            row = ' class="first"' if i == 0 else ""
            body += f'<tr{row}>{first}<td>{text(s.name)}</td><td class="m"><div class="meter" aria-hidden="true">{bar}{whisker}</div></td>'
            body += f'<td class="s"><b>{text(s.shown)}</b> <small>{text(s.note)}</small></td></tr>'
    head = "".join(_head(h, span) for h, span in zip(header, ("", "", ' colspan="2"')))
    return f'<div class="wide"><table class="shares"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>' if body else ""


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


def page(title: str, introduction: str, sections: Sequence[tuple[str, str, str, str]]) -> str:
    """The whole document; sections are (anchor, title, what came out in a few words, body).

    Control characters, which HTML forbids, become a middle dot. The policy in the head makes a browser load nothing and run nothing.
    """
    contents = "".join(
        f'<li><a href="#{text(anchor)}">{text(name)}</a><span>{text(result)}</span></li>' for anchor, name, result, _ in sections
    )
    body = "\n".join(section(anchor, name, inside) for anchor, name, _, inside in sections)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    document = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><header><h1>{text(title)}</h1>{introduction}"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav></header>\n<main>{body}</main></body></html>\n'
    )
    return _UNSEEN.sub("·", document)


STYLE = """
:root{color-scheme:light dark;--bg:#fdfdfb;--fg:#1c1d1f;--dim:#5d6065;--line:#d9dadd;--card:#f3f3ef;--user:#e3edfb;--mark:#fbe7a1;
--bot:#e9f4e6;--s0:#1f6fd6;--s1:#c75f14;--s2:#2e8b57;--s3:#9b4dca;--bad:#b83224;--good:#23733f}
@media (prefers-color-scheme:dark){:root{--bg:#16181b;--fg:#e6e6e3;--dim:#a5a9b0;--line:#3a3d42;--card:#202327;--user:#1e3350;
--bot:#21392a;--s0:#6cb0ff;--s1:#f0a35e;--s2:#6fcf97;--s3:#c89bf0;--bad:#ff8a7a;--good:#7ddc9f;--mark:#5a4a12}}
*{box-sizing:border-box}html{scroll-padding-top:1rem}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,sans-serif}
header,main{max-width:58rem;margin:0 auto;padding:1rem}p{max-width:46rem}h1{line-height:1.2;margin:.5rem 0}
h2{margin:0 0 .5rem;line-height:1.25}h3{margin:1.5rem 0 .3rem;font-size:1.05rem}
section{border-top:1px solid var(--line);padding:1.8rem 0 1rem}a{color:var(--s0)}
nav ul{list-style:none;padding:0;margin:1.2rem 0 0}nav li{display:flex;flex-wrap:wrap;gap:0 1rem;padding:.3rem 0;
border-bottom:1px solid var(--line)}nav a{flex:0 0 17rem}nav span{flex:1 1 20rem;color:var(--dim)}
code,pre{font-family:ui-monospace,monospace;font-size:.87em;overflow-wrap:anywhere}
.look{background:var(--card);border-left:4px solid var(--s1);padding:.5rem .8rem;border-radius:0 .4rem .4rem 0}
p.code,.note,figcaption{color:var(--dim);font-size:.88rem}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;margin:.5rem 0}
th,td{padding:.22rem .9rem .22rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.shares{width:100%;max-width:54rem}.shares tbody th{font-weight:normal;max-width:15rem}.shares td{border:0;padding-bottom:.1rem}
.shares tbody th{border:0}.shares tr.first>*{border-top:1px solid var(--line)}.shares .m{width:45%;min-width:5rem}
.shares td{white-space:nowrap}.shares .s{font-variant-numeric:tabular-nums}.shares small{color:var(--dim);white-space:nowrap}
.meter{position:relative;height:1rem;margin-top:.2rem;background:var(--card);border-radius:.2rem}
.meter i{position:absolute;inset:0 auto 0 0;border-radius:.2rem}
.meter u{position:absolute;top:.3rem;bottom:.3rem;border:solid var(--fg);border-width:0 2px}
.meter u::before{content:"";position:absolute;left:0;right:0;top:50%;border-top:2px solid var(--fg);margin-top:-1px}
.facts{display:flex;flex-wrap:wrap;gap:.6rem 1.6rem;margin:.8rem 0}.facts b{display:block;font-size:1.35rem;line-height:1.2}
.facts span{color:var(--dim);font-size:.85rem}figure{margin:.6rem 0}
.quote pre,.ids{white-space:pre-wrap;background:var(--card);border-radius:.4rem;padding:.6rem .8rem;margin:.2rem 0;
max-height:22rem;overflow-y:auto}mark{background:var(--mark);color:inherit;border-radius:.2rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17.5rem),1fr));gap:.8rem;margin:.8rem 0;align-items:start}
.cards .chat{margin:0;border:1px solid var(--line);border-radius:.7rem;padding:.6rem}.cards .quote{margin:0}.chat{margin:.7rem 0}
.turn{background:var(--card);border-radius:.7rem;padding:.4rem .8rem;margin:.25rem 0;width:fit-content;max-width:88%;
white-space:pre-wrap;overflow-wrap:anywhere}.turn i{display:block;font-size:.75rem;color:var(--dim)}.cards .turn{max-width:94%}
.turn.user{background:var(--user);margin-left:auto}.turn.assistant{background:var(--bot)}.good{color:var(--good)}.bad{color:var(--bad)}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--s0)}.tokens{margin:.4rem 0}.ids span{border-radius:.15rem;padding:0 .15rem}
.bar{display:grid;grid-template-columns:9.5rem 1fr 11rem;align-items:center;gap:.1rem .8rem;font-size:.88rem;margin:.25rem 0}
.bar i{background:var(--s0);height:.8rem;border-radius:.2rem;min-width:1px}.bar em{font-style:normal;color:var(--dim)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:0 1.6rem}
svg.chart{width:100%;max-width:36rem;height:auto;display:block}svg.chart text{fill:var(--fg);font:12px system-ui,sans-serif}
svg.chart .grid{stroke:var(--line)}svg.chart polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}svg.chart .raw{opacity:.35;stroke-width:1}
.legend{font-size:.85rem}.legend span{margin-right:1.2rem;display:inline-block}
.legend b{display:inline-block;width:1.1rem;height:.25rem;vertical-align:middle;margin-right:.35rem}
@media (max-width:36rem){.bar{grid-template-columns:8rem 1fr}.bar em{grid-column:2}svg.chart text{font-size:14.5px}nav a{flex-basis:100%}
.shares thead{display:none}
.shares tr{display:grid;grid-template-columns:5.2rem 1fr 8.5rem;gap:0 .5rem}.shares tbody th{grid-column:1/-1;max-width:none}
.shares tr.first{border-top:1px solid var(--line)}.shares tr.first>*{border:0}.shares td{padding-right:0}.shares .m{width:auto}
.shares td:empty{display:none}.shares td:empty+.m{grid-column:1/3}
.shares small{display:block}}
@media print{.quote pre,.ids{max-height:none}}
"""
