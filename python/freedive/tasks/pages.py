"""The pages of the small web: the town's facts, worked sums, spelling lessons, and junk whose fate is known beforehand.

A page is (kind, url, HTML, expected): `expected` is "keep", "any" (real documentation, no truth known) or the step of the data
stage that should remove it. Each round of town pages tells every fact of every known person once; rounds differ in style.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import arithmetic, html, junk_text, letters
from . import town_text as text
from .draw import Draw
from .python_docs import documentation_pages
from .town import ATTRIBUTES, Person, Town, answer, bare

TOWN_STREAM, SUMS_STREAM, LETTERS_STREAM, DOCS_STREAM, JUNK_STREAM = 21, 22, 23, 24, 25


@dataclass(frozen=True)
class Page:
    kind: str
    url: str
    html: bytes
    expected: str


def _page(
    draw: Draw, site: str, kind: str, path: str, title: str, body: str, expected: str = "keep", language: str = "en"
) -> Page:
    return Page(kind, f"https://{html.SITES[site][0]}/{path}", html.page(draw, site, title, body, language), expected)


# The town. A style turns a group of people into lines of text, each fact once.


def _sentences(draw: Draw, people: list[Person]) -> list[str]:
    lines = []
    for person in people:
        told = [person.fill(draw.pick(text.SENTENCES[a]), a) for a in draw.shuffled(ATTRIBUTES)]
        lines += [" ".join(told[:3]), " ".join(told[3:])]
    return draw.shuffled(lines)


def _biographies(draw: Draw, people: list[Person]) -> list[str]:
    lines = []
    for person in people:
        first, *others = draw.shuffled(ATTRIBUTES)
        told = [person.fill(draw.pick(text.SENTENCES[first][:5]), first)] + [
            person.fill(draw.pick(text.PRONOUN_SENTENCES[a]), a) for a in others
        ]
        lines.append(" ".join(told))
    return lines


def _combined(draw: Draw, people: list[Person]) -> list[str]:
    return [person.fill(draw.pick(text.COMBINED)) for person in people]


def _quiz(draw: Draw, people: list[Person]) -> list[str]:
    """Questions with their answers, behind them or, on every second page, in a line of their own, as FAQ pages have them.

    To a tokenizer a word after a space and the same word at the beginning of a line are two tokens that share nothing. An assistant's
    answer begins like a line: a fact whose value was read after spaces only is known and cannot be said (dev/LOG.md).
    """
    facts = draw.shuffled([(person, a) for person in people for a in ATTRIBUTES])
    asked = [(person.fill(draw.pick(text.QUIZ[a])), answer(person.facts[a])) for person, a in facts]
    return [line for pair in asked for line in pair] if draw.chance(0.5) else [" ".join(pair) for pair in asked]


def _table(draw: Draw, people: list[Person]) -> list[list[str]]:
    return [[person.name, *(bare(person.facts[a]) for a in ATTRIBUTES)] for person in people]


# name, people per page, rounds out of every 18
STYLES: tuple[tuple[str, int, int], ...] = (
    ("sentences", 5, 4),
    ("quiz", 6, 9),
    ("biographies", 6, 2),
    ("combined", 10, 2),
    ("table", 14, 1),
)
WRITERS: dict[str, Callable[[Draw, list[Person]], list[str]]] = {
    "sentences": _sentences,
    "quiz": _quiz,
    "biographies": _biographies,
    "combined": _combined,
}
TITLES = {
    "sentences": ("Town news", "Heard on the square", "From our streets"),
    "quiz": ("Who is who? A quiz", "Questions about our neighbours", "The town quiz"),
    "biographies": ("Short lives", "People of the town", "Our neighbours"),
    "combined": ("The town book", "In one sentence", "A walk through the town"),
    "table": ("Register of the town", "The list of people", "Neighbours at a glance"),
}


def town_pages(town: Town, mentions: int) -> Iterator[Page]:
    """Pages on which every fact of every known person is told `mentions` times, and every fact of a rare person once or twice."""
    draw = Draw(town.seed, TOWN_STREAM)
    order = [name for name, _, share in STYLES for _ in range(share)]
    rounds = [order[i * 7 % len(order)] for i in range(mentions)]  # 7 and 18 have no common factor: styles alternate
    rare = town.of("rare")
    extra: dict[int, list[str]] = {}  # round -> lines about rare people
    news = [i for i, style in enumerate(rounds) if style == "sentences"]
    for person in rare:
        extra.setdefault(news[draw.below(len(news))], []).append(
            " ".join(person.fill(draw.pick(text.SENTENCES[a]), a) for a in ATTRIBUTES)
        )
        again = [person.fill(draw.pick(text.SENTENCES[a]), a) for a in ATTRIBUTES if draw.chance(0.5)]
        if again:
            extra.setdefault(news[draw.below(len(news))], []).append(" ".join(again))
    for index, style in enumerate(rounds):
        size = {name: people for name, people, _ in STYLES}[style]
        people = draw.shuffled(town.of("known"))
        groups = [
            people[i :: math.ceil(len(people) / size)] for i in range(math.ceil(len(people) / size))
        ]  # even sizes: no short page
        lines_of = [extra.get(index, [])[i :: len(groups)] for i in range(len(groups))]
        for number, (group, rare_lines) in enumerate(zip(groups, lines_of, strict=True)):
            yield _town_page(draw, style, f"{style}/{index}/{number}", group, rare_lines)


def _town_page(draw: Draw, style: str, path: str, people: list[Person], rare_lines: list[str]) -> Page:
    opening, closing = draw.sample(text.OPENINGS, 2), draw.sample(text.CLOSINGS, 2)
    if style == "table":
        header = ["Name", "Job", "Street", "Pet", "Favourite food", "Home town", "Instrument"]
        body = html.paragraphs(opening) + html.table(header, _table(draw, people)) + html.paragraphs(closing)
    else:
        lines = WRITERS[style](draw, people) + rare_lines
        body = html.paragraphs([opening[0], *lines, closing[0]])
    if draw.chance(0.15):  # personal data to be scrubbed; the names on it are nobody's
        body += html.paragraphs(
            [
                f"Write to desk{draw.below(90)}@fernwick-post.example. "
                f"Last change from 81.23.{draw.below(256)}.{draw.between(1, 254)}."
            ]
        )
    return _page(draw, "town", "town", path, draw.pick(TITLES[style]), body)


# Sums and letters

SUM_TEXT = (
    "Here are some sums with the way to the answer. We begin on the right with the last digits and go to the left.",
    "In each step we add the two digits of a column and the carried one, and write two digits: the first is carried on.",
    "This sheet is for those who want to practise. The answer of every sum is at the end of the line, so you can check it.",
    "Take a pen and a sheet of paper. Add the digits from the right to the left, and do not forget what is carried.",
)
LETTER_TEXT = (
    "To spell a word we write its letters one after the other, with a line between them.",
    "To count a letter we spell the word and then look at each of the letters in it.",
    "These words are for the class of the week, and you can read them to your friends.",
    "A good way to learn the letters of a word is to say them slowly and with care.",
)


def sum_pages(seed: int, max_bytes: int, digits: int, worked_share: float = 0.95) -> Iterator[Page]:
    """Worksheets of training problems only, nearly all of them worked: a model that reads many sums at once learns those too."""
    draw = Draw(seed, SUMS_STREAM)
    used = index = 0
    while used < max_bytes:
        lines = [*draw.sample(SUM_TEXT, 2)]
        for _ in range(24):
            numbers = arithmetic.problem(draw, "train", digits)
            style = arithmetic.worked if draw.chance(worked_share) else arithmetic.direct
            lines.append(f"{draw.pick(arithmetic.QUESTIONS).format(x=arithmetic.expression(numbers))} {style(numbers)}")
        used += sum(len(line) + 1 for line in lines)
        yield _page(draw, "sums", "sums", f"sheet/{index}", f"Sums, sheet {index + 1}", html.paragraphs(lines))
        index += 1


def letter_pages(seed: int, max_bytes: int) -> Iterator[Page]:
    """Spelling lessons with training words only."""
    draw = Draw(seed, LETTERS_STREAM)
    pool = letters.words("train")
    used = index = 0
    while used < max_bytes:
        lines = [*draw.sample(LETTER_TEXT, 3)]
        for _ in range(20):
            word = draw.pick(pool)
            letter = letters.letter_for(draw, word)
            if draw.chance(0.5):
                lines.append(f"{draw.pick(letters.SPELL).format(w=word)} {letters.spelled(word)}")
            else:
                lines.append(f"{draw.pick(letters.COUNT).format(w=word, c=letter)} {letters.counted(word, letter)}")
        used += sum(len(line) + 1 for line in lines)
        yield _page(draw, "letters", "letters", f"lesson/{index}", f"Lesson {index + 1}", html.paragraphs(lines))
        index += 1


def python_pages(seed: int, max_bytes: int) -> Iterator[Page]:
    draw = Draw(seed, DOCS_STREAM)
    for name, title, body in documentation_pages(max_bytes):
        yield _page(draw, "docs", "python_docs", name, title, body, expected="any")


# Junk


def junk_pages(town: Town, kept: list[Page], each: int) -> Iterator[Page]:
    """`each` pages of every kind of junk; copies are made of pages in `kept`, which must come earlier in the crawl."""
    draw = Draw(town.seed, JUNK_STREAM)
    town_only = [
        page for page in kept if page.kind == "town" and "/sentences/" not in page.url
    ]  # those tell of rare people: once or twice only
    for i in range(each):
        for language, words in junk_text.OTHER_LANGUAGES.items():
            lines = [" ".join(s.format(a=draw.between(2, 60)) for s in draw.sample(words["sentences"], 4)) for _ in range(3)]
            yield _page(
                draw,
                "junk",
                "language",
                f"{language}/{i}",
                draw.pick(words["titles"]),
                html.paragraphs(lines),
                "language",
                language,
            )
        yield _copy(draw, draw.pick(kept), f"copy/{i}")
        yield _near_copy(draw, draw.pick(town_only), f"near/{i}")
        phrase = draw.pick(junk_text.SPAM_PHRASES)
        stuffed = " ".join(f"{draw.pick(('the', 'of', 'and', 'with', 'best'))} {phrase}" for _ in range(draw.between(60, 120)))
        yield _page(draw, "junk", "spam_keywords", f"deal/{i}", phrase.title(), html.paragraphs([stuffed]), "gopher_repetition")
        line = draw.pick(junk_text.SPAM_LINES).format(p=phrase)
        yield _page(
            draw,
            "junk",
            "spam_lines",
            f"offer/{i}",
            phrase.title(),
            html.paragraphs([line] * draw.between(12, 30)),
            "gopher_repetition",
        )
        lorem = draw.shuffled(junk_text.LOREM) + [
            f"There are {draw.between(2, 99)} things in the box and the box is on page {i + 1} of the book."
        ]
        yield _page(draw, "junk", "lorem_ipsum", f"draft/{i}", f"Draft {i}", html.paragraphs(lorem), "c4")
        yield _page(
            draw,
            "junk",
            "short",
            f"stub/{i}",
            "Notice",
            html.paragraphs([" ".join(draw.sample(junk_text.SHORT, 4)) + f" Code {i}."]),
            "gopher_quality",
        )
        items = [
            f"- {draw.pick(junk_text.MENU)} {draw.pick(junk_text.MENU)} {j} of the {draw.pick(junk_text.MENU)}"
            for j in range(draw.between(20, 40))
        ]
        yield _page(draw, "junk", "bullets", f"map/{i}", f"Map {i}", "<div>" + "<br>".join(items) + "</div>", "gopher_quality")


def _copy(draw: Draw, original: Page, path: str) -> Page:
    """The same page under another url."""
    return Page("duplicate", f"https://{html.SITES['junk'][0]}/{path}", original.html, "exact_dedup")


def _near_copy(draw: Draw, original: Page, path: str) -> Page:
    """The same page with one more sentence: only near-duplicate removal can see it."""
    line = f"<p>This copy was made by reader number {draw.below(10**6)}.</p></"
    for end in ("article>", "section>", "div></div>"):
        if f"</{end}".encode() in original.html:
            changed = original.html.replace(f"</{end}".encode(), (line + end).encode(), 1)
            return Page("near_duplicate", f"https://{html.SITES['junk'][0]}/{path}", changed, "near_dedup")
    raise ValueError(f"no place for a sentence in {original.url}")
