"""Text to words, as the recipes' reference implementation does it: by the rules of spaCy's blank English pipeline, without spaCy.

A text is cut at white space; each piece is peeled of punctuation in front and behind, cut at what separates letters inside, and
looked up among the contractions and abbreviations of English (`don't` is two words, `Mr.` is one). The rules are written down
from spaCy 3.8's behaviour (`tests/oracle/test_datatrove.py` compares) and are in `csrc/data/words.cpp`; the words of English and
what a code point is come from here. Pieces of more than 1,000 characters stay whole.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from typing import Any

# MinHash turns these into spaces (with all control characters); one list for all users of the signatures.
PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»´–—’“”„…∶━►、。《》「」【】〈〉！％（），．１：；？～")
DECIMAL_SEPARATORS = frozenset(".,،٫⎖⎗⎘")
# Peeled off words one by one; the quotes also end a sentence inside a piece
QUOTES = frozenset("\"'”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧")
MARKS = QUOTES | frozenset("…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪")
MONEY = frozenset("$£€¥฿₽﷼") | frozenset(map(chr, range(0x20A0, 0x20C0)))


def _points(ranges: str) -> frozenset[str]:
    """Characters of code points and ranges of them, in hexadecimal."""
    ends = (part.partition("-") for part in ranges.split())
    return frozenset(chr(point) for first, _, last in ends for point in range(int(first, 16), int(last or first, 16) + 1))


# Unicode's Sentence_Terminal (PropList.txt): up to version 10, where spaCy ends a sentence; and what came later or was left out, up to version 15,
# which end a line too (Khmer's signs 17D6 to 17DA are datatrove's). Colons, quotes and the sign … end neither.
SENTENCE_END = _points(
    "21 2E 3F 589 61F 6D4 700-702 7F9 964-965 104A-104B 1362 1367-1368 166E 1735-1736 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1C3B-1C3C "
    "1C7E-1C7F 203C-203D 2047-2049 2E2E 2E3C 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE52 "
    "FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 "
    "1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11A42-11A43 11A9B-11A9C 11C41-11C42 16A6E-16A6F 16AF5 16B37-16B38 16B44 1BC9F 1DA88"
)
TERMINAL_PUNCTUATION = SENTENCE_END | _points(
    "61D-61E 837 839 83D-83E 17D4-17D6 17D9-17DA 1B7D-1B7E 2E53-2E54 10F55-10F59 10F86-10F89 11944 11946 11EF7-11EF8 11F43-11F44 16E98"
)
# Flags of a code point, as in csrc/data/words.h
SPACE, DIGIT, BLANKED, DECIMAL, LETTER, MAPPED, REORDERED, LOWER, UPPER, ICON, MARK, QUOTE, CURRENCY, WORD = (1 << i for i in range(14))
_CATEGORIES = {
    "Lu": LETTER | UPPER | WORD,
    "Lt": LETTER | UPPER | WORD,
    "Ll": LETTER | LOWER | WORD,
    "Lm": LETTER | UPPER | LOWER | WORD,
    "Lo": LETTER | UPPER | LOWER | WORD,
    "Mn": LETTER,
    "Mc": LETTER,
    "Me": LETTER,
    "Nd": DIGIT | WORD,
    "Nl": WORD,
    "No": WORD,
    "So": ICON,
}

_EMOTICONS = r"""
    (*_*) (-8 (-: (-; (-_-) (._.) (: (; (= (>_<) (^_^) (o: (¬_¬) (ಠ_ಠ) (╯°□°）╯︵┻━┻ )-: ): -_- -__- ._. 0.0 0.o 0_0 0_o 8) 8-) 8-D 8D :'( :')
    :'-( :'-) :( :(( :((( :() :) :)) :))) :* :-( :-(( :-((( :-) :-)) :-))) :-* :-/ :-0 :-3 :-> :-D :-O :-P :-X :-] :-o :-p :-x :-| :-} :/ :0 :1
    :3 :> :D :O :P :X :] :o :o) :p :x :| :} ;) ;-) ;-D ;D ;_; <.< </3 <3 <33 <333 =( =) =/ =3 =D =[ =] =| >.< >.> >:( >:o ><(((*> @_@ O.O O.o
    O_O O_o V.V V_V XD XDD [-: [: [= ]= ^_^ ^__^ ^___^ o.0 o.O o.o o_0 o_O o_o v.v v_v xD xDD ¯\(ツ)/¯ ಠ_ಠ ಠ︵ಠ \")
"""


def _contractions() -> dict[str, tuple[str, ...]]:
    """Contraction or abbreviation -> its words. Most exist with and without the apostrophe, in lower case and capitalised."""
    table: dict[str, tuple[str, ...]] = {}
    endings = {
        "i": "m m+a ll ll+ve d d+ve ve",
        "you we they": "ll ll+ve d d+ve ve re",
        "he she it": "ll ll+ve d d+ve s",
        "what when where why how there": "s ll ll+ve re ve d d+ve",
        "who": "s ll ll+ve re ve d d+ve",
        "that this": "s ll ll+ve d d+ve",
        "these those": "ll ll+ve re ve d d+ve",
    }
    for words, ends in endings.items():
        for word in words.split():
            for end in ends.split():
                for head in (word, word.title()):
                    for mark in ("'", ""):
                        parts = (head, *(mark + part if part != "a" else part for part in end.split("+")))
                        table["".join(parts)] = parts
    for verb in "ca could do does did had may might must need ought sha should wo would ai are is was were have has dare".split():
        for head in (verb, verb.title()):
            for mark in ("'", ""):
                table[f"{head}n{mark}t"] = (head, f"n{mark}t")
                if verb not in "ai are is was were have has dare".split():
                    table[f"{head}n{mark}t{mark}ve"] = (head, f"n{mark}t", f"{mark}ve")
    for verb in "could might must should would".split():
        for head in (verb, verb.title()):
            for mark in ("'", ""):
                table[f"{head}{mark}ve"] = (head, f"{mark}ve")
    for split in "y'+all y+all how+'d+'y not+'ve not+ve can+not gon+na got+ta let+'s c'm+on".split():
        for form in (split, split[0].upper() + split[1:]) if split[0] != "y" else (split,):
            table[form.replace("+", "")] = tuple(form.split("+"))
    for hour in range(1, 13):
        for half in ("a.m.", "am", "p.m.", "pm"):
            table[f"{hour}{half}"] = (str(hour), half)
    whole = (
        "'S 's ‘S ‘s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout ma'am Ma'am o'clock O'clock 'd 'em em 'll ll 'nuff nuff "
        "a.m. p.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. "
        "Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s. Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. "
        "Ind. Jan. Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. "
        "Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. ' '' C++ \\n \\t — <space>"
    )
    table.update({word: (word,) for word in whole.split()})
    table.update({face: (face,) for face in _EMOTICONS.split()})
    table.update({f"°{unit}.": ("°", unit, ".") for unit in "cfkCFK"})
    table.update({f"{letter}.": (f"{letter}.",) for letter in "abcdefghijklmnopqrstuvwxyzäöü"})
    for word in "lovin havin doin goin nothin nuthin somethin ol".split():
        for head in (word, word.title()):
            table.update({head: (head,), head + "'": (head + "'",)})
    table.update({chunk.replace("'", "’"): tuple(part.replace("'", "’") for part in parts) for chunk, parts in table.items()})
    for word in "ill its hell shell shed were well whore".split():  # words of their own
        table.pop(word, None)
        table.pop(word.title(), None)
    return table


CONTRACTIONS = _contractions()


def _page(number: int) -> tuple[list[int], list[str]]:
    """Flags and replacements of 256 code points. A replacement is the canonical decomposition without marks (category Mn)."""
    flags, replacements = [0] * 256, [""] * 256
    points = range(256 * number, 256 * number + 256)
    if number > 0x10FF or 0xD8 <= number < 0xE0:
        return flags, replacements
    decomposed = not unicodedata.is_normalized("NFD", " ".join(map(chr, points)))
    for i, character in enumerate(map(chr, points)):
        category = unicodedata.category(character)
        flags[i] = _CATEGORIES.get(category, 0) | _SIGNS.get(character, 0) | SPACE * character.isspace()
        if category == "Cc" and character not in "\t\n":
            flags[i] |= BLANKED
        plain = unicodedata.normalize("NFD", character) if decomposed else character
        if plain != character or category == "Mn":
            plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
        if plain != character:
            flags[i] |= MAPPED
            replacements[i] = plain
        if category[0] == "M" or plain != character:
            flags[i] |= REORDERED * any(map(unicodedata.combining, plain))
    return flags, replacements


def _signs() -> dict[str, int]:
    """Flags of the characters named above."""
    flags: dict[str, int] = {"_": WORD}
    for signs, flag in ((PUNCTUATION, BLANKED), (DECIMAL_SEPARATORS, DECIMAL), (MARKS, MARK), (QUOTES, QUOTE), (MONEY, CURRENCY)):
        for sign in signs:
            flags[sign] = flags.get(sign, 0) | flag
    return flags


_SIGNS = _signs()


@functools.lru_cache(maxsize=1)
def _splitter() -> Any:
    from freedive import _core

    splitter = _core.Splitter()
    for number in {ord(character) >> 8 for chunk in CONTRACTIONS for character in chunk}:
        splitter.learn_page(number, *_page(number))
    for chunk, parts in CONTRACTIONS.items():
        splitter.learn(chunk, [len(part.encode()) for part in parts])
    return splitter


@functools.lru_cache(maxsize=1)  # one text is asked for by several rules in turn
def split(text: str, simplify: bool = False) -> Any:
    """The words of a text as a `_core.Words`: `.list()`, `.ids()`, `.repetition(...)`, `.signature(a, b)`.

    `simplify`: of the text as MinHash wants it, lower-case, numbers as 0, no punctuation and no accents.
    """
    return _split(text, simplify)


def _split(text: str, simplify: bool) -> Any:
    splitter = _splitter()
    if simplify:
        text = text.lower()
    try:
        text.encode() if not text.isascii() else None
    except UnicodeEncodeError:  # lone surrogates
        text = text.encode("utf-8", "replace").decode()
    while True:
        words = splitter.split(text, simplify)
        if not words.missing_pages:
            return words
        for number in words.missing_pages:
            splitter.learn_page(number, *_page(number))


def counts(text: str, wanted: Iterable[str] = ()) -> Any:
    """How many words there are, as a `_core.WordCounts`: `.all`, `.real` (no single signs), `.real_characters`, `.alphabetic` (with a
    letter), `.wanted` (different ones of these that occur)."""
    return _splitter().count(split(text), list(wanted))


def sentences(text: str) -> int:
    """How many sentences a line holds, as spaCy's sentencizer counts: one ends at a word of SENTENCE_END and the punctuation behind it."""
    count, ended = 0, True
    for word in _split(text, False).list():  # a line: the page's words stay remembered
        if word in SENTENCE_END:
            count, ended = max(count, 1), True
        elif ended and not (count and all(unicodedata.category(c)[0] == "P" for c in word)):
            count, ended = count + 1, False
    return count


def words_of(text: str) -> list[str]:
    """The words of a text, symbols among them."""
    return list(split(text).list())
