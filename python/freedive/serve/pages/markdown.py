"""What a model writes, as HTML that cannot do anything: Markdown with tables, highlighted code and mathematics, nothing else.

Raw HTML is text here (markdown-it's html = False), links go to http, https and mail only, and pictures are links, because loading one would tell
its server that the answer was read. The page runs DOMPurify over the result besides, and its Content-Security-Policy allows this origin only.
LaTeX becomes MathML (latex2mathml), which browsers draw themselves. While an answer grows only its last block changes (`blocks`).
"""

from __future__ import annotations

import functools
import html
import re
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin

MAX_CHARS = 50_000  # more is shown as it is
_MAX_MATHS, _MAX_CODE = 4_000, 50_000
_MAX_BRACKETS = 250  # of one paragraph: the time that links and formulas are looked for grows with their square
_LINES = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")  # as markdown-it counts them
_LINK = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)


@functools.lru_cache(maxsize=256)
def to_html(text: str) -> str:
    """Safe HTML of a Markdown text."""
    if len(text) > MAX_CHARS:
        return f"<pre>{html.escape(text)}</pre>"
    return _parser().render(text)


def blocks(text: str) -> list[str]:
    """The top-level blocks of a text (paragraphs, lists, code, tables), in order: more text can change the last one only.

    Joined they are the text, line ends at their borders included.
    """
    if len(text) > MAX_CHARS:
        return [text]
    begins = sorted({token.map[0] for token in _parser().parse(text) if token.level == 0 and token.map})
    lines = _LINES.split(text)
    cuts = [0, *begins[1:], len(lines)]
    return [part for a, b in zip(cuts, cuts[1:]) if (part := "".join(lines[a:b]))]


@functools.lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "highlight": _highlighted, "maxNesting": 40}).enable(["table", "strikethrough"])
    parser.core.ruler.at("inline", _inline)
    parser.use(dollarmath_plugin, allow_space=False, allow_digits=False, double_inline=True)
    parser.use(texmath_plugin, delimiters="brackets")  # \( \) and \[ \]
    for rule in ("math_inline", "math_single"):
        parser.add_render_rule(rule, lambda _, tokens, at, *rest: _maths(tokens[at].content, False))
    for rule in ("math_inline_double", "math_block", "math_block_label", "math_block_eqno"):
        parser.add_render_rule(rule, lambda _, tokens, at, *rest: _maths(tokens[at].content, True))
    parser.add_render_rule("image", _picture)
    parser.validateLink = lambda url: bool(_LINK.match(url.strip()))  # type: ignore[method-assign]
    return parser


def _inline(state: Any) -> None:
    """markdown-it's own rule, but for paragraphs made to keep it busy (a model that repeats itself makes them too): these stay as they are."""
    for token in state.tokens:
        if token.type == "inline":
            if token.content.count("[") + token.content.count("\\(") > _MAX_BRACKETS:
                token.children = [Token("text", "", 0, content=token.content)]
            else:
                state.md.inline.parse(token.content, state.md, state.env, token.children)


def _picture(_: Any, tokens: Any, at: int, options: Any, env: Any) -> str:
    address, name = str(tokens[at].attrGet("src") or ""), html.escape(tokens[at].content or "picture")
    return f'<a href="{html.escape(address)}" rel="noopener noreferrer">[{name}]</a>' if _LINK.match(address) else f"[{name}]"


def _maths(content: str, display: bool) -> str:
    found = _mathml(content.strip(), display)
    return found if found is not None else f"<code>{html.escape(content)}</code>"


@functools.lru_cache(maxsize=512)
def _mathml(latex: str, display: bool) -> str | None:
    if not latex or len(latex) > _MAX_MATHS:
        return None
    from latex2mathml.converter import convert_to_element

    try:
        return _written(convert_to_element(latex, display="block" if display else "inline"))
    except Exception:  # half a formula while it is written, or what the library does not know: shown as it was written
        return None


# The library writes text it was given unescaped, and \href's address as it is: only what draws is taken from its tree, and written anew.
_MATHML = frozenset(
    "math mrow mi mn mo mtext mspace ms msup msub msubsup munder mover munderover mfrac msqrt mroot mtable mtr mtd mstyle mpadded mphantom menclose".split()
)
_ATTRIBUTES = frozenset(
    "display displaystyle scriptlevel mathvariant stretchy fence separator form lspace rspace minsize maxsize accent accentunder linethickness width height "
    "depth columnalign rowspacing columnspacing columnlines rowlines notation movablelimits symmetric largeop".split()
)


def _written(element: Any) -> str:
    tag = str(element.tag).rpartition("}")[2]
    text = html.escape(html.unescape(element.text or ""))
    inside = text + "".join(_written(child) + html.escape(html.unescape(child.tail or "")) for child in element)
    if tag not in _MATHML:
        return f"<mrow>{inside}</mrow>"
    kept = "".join(f' {name}="{html.escape(str(value))}"' for name, value in element.attrib.items() if name in _ATTRIBUTES)
    return f"<{tag}{kept}>{inside}</{tag}>"


@functools.lru_cache(maxsize=256)
def _highlighted(code: str, language: str, _: str) -> str:
    """The inside of a <pre>: markdown-it escapes it itself if this is empty."""
    if not language or len(code) > _MAX_CODE:
        return ""
    import pygments
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return pygments.highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True))
    except ClassNotFound:
        return ""


def highlight_css() -> str:
    """Colours of highlighted code, light and dark."""
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="friendly", nobackground=True).get_style_defs(".prose pre code")
    dark = HtmlFormatter(style="github-dark", nobackground=True).get_style_defs(".body--dark .prose pre code")
    return f"{light}\n{dark}"
