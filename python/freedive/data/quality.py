"""Quality rules with published values: Gopher (2112.11446), C4 (1910.10683), FineWeb (2406.17557), in datatrove's order.

Each filter is (text, rules) -> (text or None, reason): the first rule that fails is the reason. Words are those of spaCy's blank
English (`words`). A rule is switched off by the value None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .words import counts, split

_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?:\s|$)")
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
# What ends a line as a sentence: the characters that Unicode calls Sentence_Terminal (PropList.txt), as datatrove has it. No quotation
# mark and no colon is among them.
_SENTENCE_TERMINAL = """21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6 17D9-17DA
1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 2E2E 2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3
A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048
110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E
11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16E98 1BC9F 1DA88"""
TERMINAL = frozenset(chr(c) for first, _, last in (r.partition("-") for r in _SENTENCE_TERMINAL.split()) for c in range(int(first, 16), int(last or first, 16) + 1))
Decision = tuple[str | None, str]


@dataclass(frozen=True)
class GopherRepetition:
    """Largest allowed parts of duplicated paragraphs, lines and n-grams; of characters where the name says so."""

    dup_para_frac: float | None = 0.3
    dup_para_char_frac: float | None = 0.2
    dup_line_frac: float | None = 0.3
    dup_line_char_frac: float | None = 0.2
    top_n_grams: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    dup_n_grams: tuple[tuple[int, float], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))


@dataclass(frozen=True)
class GopherQuality:
    min_words: int | None = 50
    max_words: int | None = 100_000
    min_mean_word_length: float | None = 3
    max_mean_word_length: float | None = 10
    max_symbol_ratio: float | None = 0.1  # "#" and ellipses per word
    max_bullet_lines: float | None = 0.9
    max_ellipsis_lines: float | None = 0.3
    min_alpha_words: float | None = 0.8
    min_stop_words: int | None = 2  # distinct ones


@dataclass(frozen=True)
class C4:
    """Line rules rewrite the text: only the lines that pass are kept."""

    max_word_length: int | None = 1000
    min_words_per_line: int | None = 3
    remove_citations: bool = True
    remove_javascript_lines: bool = True
    remove_policy_lines: bool = True
    drop_lorem_ipsum: bool = True
    drop_curly_bracket: bool = True
    min_sentences: int | None = 5


@dataclass(frozen=True)
class FineWeb:
    min_line_punctuation: float | None = 0.12
    short_line_length: int = 30
    max_short_lines: float | None = 0.67
    max_dup_line_chars: float | None = 0.01  # the code's value; the paper says 0.1
    max_newlines_per_word: float | None = 0.3


@dataclass(frozen=True)
class Rules:
    """The quality steps in order; None leaves a step out."""

    gopher_repetition: GopherRepetition | None = None
    gopher_quality: GopherQuality | None = None
    c4: C4 | None = None
    fineweb: FineWeb | None = None


# For small corpora: removes what is junk beyond doubt, and keeps lists, sheets of sums, code and books. The looser n-gram cuts
# are needed because a short page about one person repeats the name; the published values are meant for pages of a web crawl.
BASIC = Rules(
    GopherRepetition(top_n_grams=((2, 0.35), (3, 0.3), (4, 0.3)), dup_n_grams=((5, 0.6), (8, 0.5), (10, 0.45))),
    GopherQuality(max_words=None, min_mean_word_length=None, max_mean_word_length=15, min_alpha_words=0.1, min_stop_words=1),
    C4(
        min_words_per_line=None,
        remove_citations=False,
        remove_javascript_lines=False,
        drop_curly_bracket=False,
        min_sentences=None,
    ),
)
PRESETS: dict[str, Rules] = {
    "none": Rules(),
    "basic": BASIC,
    "gopher": Rules(GopherRepetition(), GopherQuality()),
    "fineweb": Rules(GopherRepetition(), GopherQuality(), C4(), FineWeb()),
    "fineweb-paper": Rules(GopherRepetition(), GopherQuality(), C4(), FineWeb(max_dup_line_chars=0.1)),
}


def gopher_repetition(text: str, rules: GopherRepetition) -> Decision:
    """Gopher, appendix A.1.1, "repetition"; empty texts fail no rule."""
    paragraphs = [paragraph.lstrip("\n") for paragraph in text.strip().split("\n\n") if paragraph] or [""]
    count, characters = _duplicates(paragraphs)
    if _above(count / len(paragraphs), rules.dup_para_frac):
        return None, "dup_para_frac"
    if _above(characters / max(1, len(text)), rules.dup_para_char_frac):
        return None, "dup_para_char_frac"
    lines = [line for line in text.strip().split("\n") if line] or [""]
    count, characters = _duplicates(lines)
    if _above(count / len(lines), rules.dup_line_frac):
        return None, "dup_line_frac"
    if _above(characters / max(1, len(text)), rules.dup_line_char_frac):
        return None, "dup_line_char_frac"
    grams = split(text).repetition()
    for n, limit in rules.top_n_grams:
        if grams.top(n) / max(1, len(text)) > limit:
            return None, f"top_{n}_gram"
    for n, limit in rules.dup_n_grams:
        if grams.repeated(n) / max(1, len(text)) > limit:
            return None, f"duplicated_{n}_grams"
    return text, ""


def _duplicates(items: Sequence[str]) -> tuple[int, int]:
    """How many items repeat an earlier one, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for item in items:
        if item in seen:
            count += 1
            characters += len(item)
        else:
            seen.add(item)
    return count, characters


def gopher_quality(text: str, rules: GopherQuality) -> Decision:
    """Gopher, appendix A.1.1, "quality"."""
    words = counts(text, STOP_WORDS)
    count = words.real
    if rules.min_words is not None and count < rules.min_words:
        return None, "short_doc"
    if _above(count, rules.max_words):
        return None, "long_doc"
    mean = words.real_characters / max(1, count)
    if rules.min_mean_word_length is not None and mean < rules.min_mean_word_length:
        return None, "below_mean_word_length"
    if _above(mean, rules.max_mean_word_length):
        return None, "above_mean_word_length"
    total = max(1, words.all)
    if _above(text.count("#") / total, rules.max_symbol_ratio):
        return None, "too_many_hashes"
    ellipses = text.count("...") + text.count("…")
    if _above(ellipses / total, rules.max_symbol_ratio):
        return None, "too_many_ellipses"
    lines = text.splitlines() or [""]
    # Lines are only looked at where the signs would do for enough of them
    if _above((text.count("•") + text.count("-")) / len(lines), rules.max_bullet_lines) and _above(
        sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines), rules.max_bullet_lines
    ):
        return None, "too_many_bullets"
    if _above(ellipses / len(lines), rules.max_ellipsis_lines) and _above(
        sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines), rules.max_ellipsis_lines
    ):
        return None, "too_many_ellipsis_lines"
    if rules.min_alpha_words is not None and words.alphabetic / total < rules.min_alpha_words:
        return None, "below_alpha_words"
    if rules.min_stop_words is not None and words.wanted < rules.min_stop_words:
        return None, "enough_stop_words"
    return text, ""


def c4(text: str, rules: C4) -> Decision:
    """C4's line and page rules, without its rule of terminal punctuation (as FineWeb)."""
    kept, sentences = [], 0
    enough = rules.min_sentences or 0
    whole = text.lower()
    named = any(phrase in whole for phrase in ("lorem ipsum", "javascript", *POLICY))  # in hardly any page
    for line in text.splitlines():
        if not line.strip():
            kept.append("")
            continue
        if rules.max_word_length is not None and len(line) > rules.max_word_length and max(map(len, line.split())) > rules.max_word_length:
            continue
        cited = rules.remove_citations and "[" in line  # what is left may make up one of the phrases
        if cited:
            line = _CITATION.sub("", line)
        if rules.min_words_per_line is not None and len(line.split()) < rules.min_words_per_line:
            continue
        lower = line.lower() if named or cited else ""
        if rules.drop_lorem_ipsum and "lorem ipsum" in lower:
            return None, "lorem_ipsum"
        if rules.remove_javascript_lines and "javascript" in lower:
            continue
        if rules.drop_curly_bracket and "{" in line:
            return None, "curly_bracket"
        if rules.remove_policy_lines and lower and any(phrase in lower for phrase in POLICY):
            continue
        if sentences < enough:
            sentences += max(1, len(_SENTENCE_END.findall(line)))
        kept.append(line)
    if rules.min_sentences is not None and sentences < rules.min_sentences:
        return None, "too_few_sentences"
    result = "\n".join(kept)
    result = (re.sub(r"\n{3,}", "\n\n", result) if "\n\n\n" in result else result).strip("\n")
    return (result, "") if result.strip() else (None, "no_line_left")


def fineweb(text: str, rules: FineWeb) -> Decision:
    """FineWeb's own rules (datatrove's FineWebQualityFilter)."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return None, "empty"
    if rules.min_line_punctuation is not None and sum(line.rstrip()[-1:] in TERMINAL for line in lines) / len(lines) < rules.min_line_punctuation:
        return None, "line_punctuation"
    if _above(sum(len(line) <= rules.short_line_length for line in lines) / len(lines), rules.max_short_lines):
        return None, "short_lines"
    if _above(_duplicates(lines)[1] / max(1, len(text.replace("\n", ""))), rules.max_dup_line_chars):
        return None, "dup_line_chars"
    if _above(text.count("\n") / max(1, len(split(text))), rules.max_newlines_per_word):
        return None, "newlines_per_word"
    return text, ""


def _above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit
