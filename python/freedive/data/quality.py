"""Quality rules with published values: Gopher (2112.11446), C4 (1910.10683), FineWeb (2406.17557), in datatrove's order.

Each filter is (text, rules) -> (text or None, reason): the first rule that fails is the reason. Words are those of spaCy's blank
English (`words`). A rule is switched off by the value None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .words import TERMINAL_PUNCTUATION, counts, sentences, split

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
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
    """C4's line and page rules, without its rule of terminal punctuation (as FineWeb). Blank lines and indentation stay, unlike in datatrove."""
    kept, count = [], 0
    enough = rules.min_sentences or 0
    whole = text.lower()
    named = any(phrase in whole for phrase in ("lorem ipsum", "javascript", *POLICY))  # in hardly any page
    for line in text.splitlines():
        if not line.strip():
            kept.append("")
            continue
        if rules.max_word_length is not None and len(line) > rules.max_word_length and max(map(len, line.split())) > rules.max_word_length:
            continue
        few = rules.min_words_per_line is not None and len(line.split()) < rules.min_words_per_line
        cited = rules.remove_citations and "[" in line  # what is left may make up one of the phrases
        if cited:
            line = _CITATION.sub("", line)
        if few:
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
        if count < enough:
            count += sentences(line)
        kept.append(line)
    if rules.min_sentences is not None and count < rules.min_sentences:
        return None, "too_few_sentences"
    result = "\n".join(kept)
    result = (re.sub(r"\n{3,}", "\n\n", result) if "\n\n\n" in result else result).strip("\n")
    return (result, "") if result.strip() else (None, "no_line_left")


def fineweb(text: str, rules: FineWeb) -> Decision:
    """FineWeb's own rules (datatrove's FineWebQualityFilter), of lines as the recipe's C4 step leaves them: no blank ones, no indentation."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    if not lines:
        return None, "empty"
    if rules.min_line_punctuation is not None and sum(line[-1] in TERMINAL_PUNCTUATION for line in lines) / len(lines) < rules.min_line_punctuation:
        return None, "line_punctuation"
    if _above(sum(len(line) <= rules.short_line_length for line in lines) / len(lines), rules.max_short_lines):
        return None, "short_lines"
    if _above(_duplicates(lines)[1] / sum(map(len, lines)), rules.max_dup_line_chars):
        return None, "dup_line_chars"
    if _above((len(lines) - 1) / max(1, len(split(text))), rules.max_newlines_per_word):
        return None, "newlines_per_word"
    return text, ""


def _above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit
