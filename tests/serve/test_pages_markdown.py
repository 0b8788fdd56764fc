"""What a model writes becomes HTML that cannot do anything, and grows the same way it is drawn whole."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("markdown_it")
pytest.importorskip("mdit_py_plugins")
pytest.importorskip("latex2mathml")
from freedive.serve.pages.markdown import blocks, to_html  # noqa: E402

# Ways by which HTML of somebody else's has run in chat pages before.
ATTACKS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))", "[x](&#106;avascript:alert(1))", "[x](data:text/html,<script>alert(1)</script>)", "![x](javascript:alert(1))",
    "![x](http://127.0.0.2/pixel.png)", '[x](http://a.b "onmouseover=alert(1)")', '[x](<http://a.b" onmouseover="alert(1)>)', "<http://a.b/<script>alert(1)</script>>",
    r"$\text{<img/src=x/onerror=alert(1)>}$", r"$\href{javascript:alert(1)}{x}$", r"$$\class{x" + '" onclick="alert(1)' + r"}{y}$$", r"\(\text{</math><script>alert(1)</script>}\)",
    '```python\n"</code></pre><script>alert(1)</script>"\n```', '```"><script>alert(1)</script>\nx\n```', "`<script>alert(1)</script>`", "| <script>alert(1)</script> |\n|---|\n| <b onclick=alert(1)> |",
    "[a]: javascript:alert(1)\n\n[a]", "<a href='javascript:alert(1)'>x</a>", "<style>@import 'http://a.b'</style>", "<form action=http://a.b><button>x</button></form>", "<!--><script>alert(1)</script>-->",
]  # fmt: skip
_TAGS = set("p h1 h2 h3 h4 h5 h6 em strong s code pre ul ol li blockquote a br hr table thead tbody tr th td span".split()) | set(
    "math mrow mi mn mo mtext mspace ms msup msub msubsup munder mover munderover mfrac msqrt mroot mtable mtr mtd mstyle mpadded mphantom menclose".split()
)
_ATTRIBUTES = {"href", "rel", "title", "class", "style", "start", "display", "stretchy", "mathvariant", "width", "linethickness", "fence", "form", "lspace", "rspace", "minsize", "maxsize",
               "columnalign", "notation", "displaystyle", "scriptlevel", "accent", "movablelimits", "rowspacing", "columnspacing", "height", "depth", "separator", "largeop", "symmetric"}  # fmt: skip


class _Check(HTMLParser):
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _TAGS, tag
        for name, value in attrs:
            assert name in _ATTRIBUTES and not name.startswith("on"), name
            if name == "href":
                assert (value or "").lower().startswith(("http://", "https://", "mailto:"))
            if name == "style":
                assert value in ("text-align:left", "text-align:right", "text-align:center")


def harmless(text: str) -> str:
    found = to_html(text)
    checker = _Check(convert_charrefs=True)
    checker.feed(found)
    checker.close()
    return found


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks_are_text(text: str):
    assert "<script" not in harmless(text) and "<img" not in harmless(text)


@given(st.lists(st.sampled_from([*ATTACKS, "\n", "\n\n", "- ", "> ", "```", "$", "$$", "**", "|", "\\(", "\\)", "<", '"', "a "]), max_size=12).map("".join))
def test_mixtures_of_attacks_are_text(text: str):
    harmless(text)


@given(st.text(max_size=200))
def test_anything_is_drawn(text: str):
    harmless(text)
    assert "".join(blocks(text)) == text


def test_what_models_write():
    found = harmless("# A\n\n**b** `c` $x^2$ and $5 or $6\n\n```python\ndef f(): pass\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n\\[ E = mc^2 \\]\n\n1. x\n2. y\n\n~~z~~ [w](https://w.org)")
    for part in ("<h1>", "<strong>", "<msup>", "$5 or $6", '<span class="k">def</span>', "<table>", 'display="block"', "<ol>", "<s>", 'href="https://w.org"'):
        assert part in found, part


def test_half_a_formula_is_shown_as_written():
    assert "<code>\\frac{1}{</code>" in harmless("$\\frac{1}{$")


@pytest.mark.parametrize("text", ["# A\n\ntext\n\n- a\n- b\n\n  more\n\n```\ncode\n\n```\nend", "a\n\nb\n\nc\n", "| a |\n|---|\n| 1 |\n\n> q\n\nx", "a\u2028b\x0b\n\nc"])
def test_blocks_drawn_one_by_one_are_the_whole(text: str):
    assert "".join(blocks(text)) == text
    assert "".join(to_html(b) for b in blocks(text)) == to_html(text)


@pytest.mark.parametrize("piece", ["[", "![", "\\(", "[a][", "[a](", "*a ", "**", "`a``", "<", "$a", "> ", "- a\n  ", "|a", "&#x", "~~", "$$a\n", "a|b\n-|-\n", "[a]: b\n", "\\["])
def test_no_text_takes_long(piece: str):
    import time

    text = (piece * 20_000)[:20_000]  # a model that repeats itself to the end of a long answer
    began = time.process_time()
    to_html(text)
    blocks(text)
    assert time.process_time() - began < 3  # 0.9 s at most on a quiet core; without the bound on brackets 6.6


def test_a_huge_text_is_not_parsed():
    text = "[" * 300_000
    assert to_html(text).startswith("<pre>") and blocks(text) == [text]
