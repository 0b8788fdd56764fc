"""Text to words, as the recipes' reference implementation does it: by the rules of spaCy's blank English pipeline, without spaCy.

A text is cut at white space; each piece is peeled of punctuation in front and behind, cut at what separates letters inside, and
looked up among the contractions and abbreviations of English (`don't` is two words, `Mr.` is one). Pieces repeat a lot, so the
compiled core remembers what each became and asks `pieces` only about new ones; pieces of letters only never get here.
The rules are written down from spaCy 3.8's behaviour (`tests/data/test_datatrove.py` compares). Pieces of more than 1,000
characters stay whole: peeling them one character at a time takes quadratic time.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

import regex

LONGEST_PIECE = 1000
# MinHash turns these into spaces (with all control characters); one list for all users of the signatures.
PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»´–—’“”„…∶━►、。《》「」【】〈〉！％（），．１：；？～")
DECIMAL_SEPARATORS = frozenset(".,،٫⎖⎗⎘")
SPACE, DIGIT, PUNCT, DECIMAL, LETTER, MAPPED, REORDERED = (1 << i for i in range(7))  # flags of a code point, as csrc/data/words.h

_PUNCT = r"""…,:;!?¿؟¡()\[\]{}<>_#*&。？！，、；：～·।،۔؛٪"""
_QUOTE = r"""'"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"""
_MONEY = r"US\$|C\$|A\$|[$£€¥฿₽﷼₠-₿]"
_ICON = r"\p{So}"
_LOWER, _UPPER, _ALPHA = r"[^\P{L}\p{Lu}\p{Lt}]", r"[^\P{L}\p{Ll}]", r"\p{L}"
_HYPHEN = r"---|--|——|[-–—~]"
_UNIT = (
    "km²|km³|km/h|kmh|km|m²|m³|m/s|mph|mbar|mm²|mm³|mm|mb|mg|m|dm²|dm³|dm|cm²|cm³|cm|ha|hPa|Pa|µm|µg|nm|yd|in|ft|kg|kb|g|gb|t|tb|lb|oz|"
    "MB|KB|GB|TB|T|G|M|K|%|км²|км³|км/ч|км|м²|м³|м/с|м|дм²|дм³|дм|см²|см³|см|мм²|мм³|мм|нм|кг|г|мг|кПа|Па|мбар|Кб|КБ|кб|Мб|МБ|мб|Гб|ГБ|гб|Тб|ТБ"
)
_PREFIX = regex.compile(rf"[§%=—–]|\+(?![0-9])|[{_PUNCT}{_QUOTE}]|\.\.+|{_MONEY}|{_ICON}")
_SUFFIX = regex.compile(
    rf"(?:……|[{_PUNCT}{_QUOTE}—–]|\.\.+|{_ICON}|['’][sS]|(?<=[0-9])(?:\+|{_MONEY}|{_UNIT})|(?<=°[FfCcKk])\."
    rf"|(?<=[0-9%²+\-|{_PUNCT}{_QUOTE}]|{_LOWER}|{_UPPER}{_UPPER})\.)$"
)
_INFIX = regex.compile(
    rf"\.\.+|…|{_ICON}|(?<=[0-9])[+\-*^](?=[0-9-])|(?<={_LOWER}|[{_QUOTE}])\.(?={_UPPER}|[{_QUOTE}])|(?<={_ALPHA}),(?={_ALPHA})"
    rf"|(?<={_ALPHA}|[0-9])(?:{_HYPHEN})(?={_ALPHA})|(?<={_ALPHA}|[0-9])[:<>=/](?={_ALPHA})"
)
_URL = regex.compile(
    rf"(?:[\w+\-.]{{2,}}://)?(?:\S+@)?(?:\d{{1,3}}(?:\.\d{{1,3}}){{3}}|(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{{0,62}})?"
    rf"[A-Za-z0-9\u00a1-\uffff]\.)+{_LOWER}{{2,63}})(?::\d{{2,5}})?(?:[/?#]\S*)?"
)
# The commonest new pieces, which the rules above peel to the same: a long word, perhaps with one mark before and one behind
_PLAIN = regex.compile(r"""([(\["]?)([A-Za-z][A-Za-z_]+[a-z])([.,;:!?)\]"]?)""")

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


def pieces(chunk: str) -> list[str]:
    """The words of a piece of text without white space; joined, they give the piece again."""
    plain = _PLAIN.fullmatch(chunk)
    if plain is not None:
        before, word, after = plain.groups()
        if word not in CONTRACTIONS and word + after not in CONTRACTIONS and chunk not in CONTRACTIONS:
            return [part for part in (before, word, after) if part]
    return [chunk] if len(chunk) > LONGEST_PIECE else _joined(_peeled(chunk, CONTRACTIONS))


def _joined(parts: list[str]) -> list[str]:
    """With symbols that together are a contraction or an emoticon put together again, the longest first."""
    if not any(pair in _beginnings() for pair in zip(parts, parts[1:])):
        return parts
    spans = [
        (end - start, -start)
        for start in range(len(parts))
        for end in range(start + 2, min(len(parts), start + _longest_sequence()) + 1)
        if tuple(parts[start:end]) in _sequences()
    ]
    taken: set[int] = set()
    chosen = []
    for length, negative in sorted(spans, reverse=True):
        if taken.isdisjoint(range(-negative, -negative + length)):
            taken.update(range(-negative, -negative + length))
            chosen.append((-negative, length))
    for start, length in sorted(chosen, reverse=True):
        parts[start : start + length] = CONTRACTIONS["".join(parts[start : start + length])]
    return parts


@functools.lru_cache(maxsize=1)
def _sequences() -> frozenset[tuple[str, ...]]:
    """What the contractions and emoticons are peeled into when they are not known as such."""
    return frozenset(tuple(_peeled(word, {})) for word in CONTRACTIONS if _PREFIX.match(word) or _SUFFIX.search(word) or _INFIX.search(word))


@functools.lru_cache(maxsize=1)
def _beginnings() -> frozenset[tuple[str, str]]:
    return frozenset((parts[0], parts[1]) for parts in _sequences() if len(parts) > 1)


@functools.lru_cache(maxsize=1)
def _longest_sequence() -> int:
    return max(map(len, _sequences()))


def _peeled(chunk: str, known: dict[str, tuple[str, ...]]) -> list[str]:
    front: list[str] = []
    back: list[str] = []
    rest = chunk
    while rest and rest not in known:
        found = _PREFIX.match(rest)
        before = found.end() if found else 0
        if before and rest[before:] in known:
            front.append(rest[:before])
            rest = rest[before:]
            break
        found = _SUFFIX.search(rest[before:])
        after = found.end() - found.start() if found else 0
        if after and rest[: len(rest) - after] in known:
            back.append(rest[len(rest) - after :])
            rest = rest[: len(rest) - after]
            break
        if not before and not after:
            break
        if before and after and before + after <= len(rest):
            front.append(rest[:before])
            back.append(rest[len(rest) - after :])
            rest = rest[before : len(rest) - after]
        elif before:
            front.append(rest[:before])
            rest = rest[before:]
        else:
            back.append(rest[len(rest) - after :])
            rest = rest[: len(rest) - after]
    middle: list[str] = []
    if rest in known:
        middle = list(known[rest])
    elif rest and _URL.fullmatch(rest):
        middle = [rest]
    elif rest:
        start = 0
        for cut in _INFIX.finditer(rest):
            if cut.start() == 0:
                continue
            middle += [part for part in (rest[start : cut.start()], cut.group()) if part]
            start = cut.end()
        middle += [rest[start:]] if rest[start:] else []
    return front + middle + back[::-1]


def _page(number: int) -> tuple[bytes, list[str]]:
    """Flags and replacements of 256 code points. A replacement is the canonical decomposition without marks (category Mn)."""
    flags, replacements = bytearray(256), [""] * 256
    for i in range(256):
        point = 256 * number + i
        if 0xD800 <= point < 0xE000 or point > 0x10FFFF:
            continue
        character = chr(point)
        category = unicodedata.category(character)
        plain = "".join(c for c in unicodedata.normalize("NFD", character) if unicodedata.category(c) != "Mn")
        flags[i] = (
            SPACE * character.isspace()
            | DIGIT * (category == "Nd")
            | PUNCT * (character in PUNCTUATION or (category == "Cc" and point not in (9, 10)))
            | DECIMAL * (character in DECIMAL_SEPARATORS)
            | LETTER * (category[0] in "LM")
            | MAPPED * (plain != character)
            | REORDERED * any(unicodedata.combining(c) and unicodedata.category(c) != "Mn" for c in plain)
        )
        replacements[i] = plain
    return bytes(flags), replacements


@functools.lru_cache(maxsize=1)
def _splitter() -> Any:
    from freedive import _core

    splitter = _core.Splitter()
    splitter.learn_page(0, *_page(0))
    for chunk, parts in CONTRACTIONS.items():
        splitter.learn(chunk, [len(part.encode()) for part in parts], True)
    return splitter


def split(text: str, simplify: bool = False) -> Any:
    """The words of a text as a `_core.Words`: `.list()`, `.ids()`, `.repetition(...)`, `.signature(a, b)`.

    `simplify`: of the text as MinHash wants it, lower-case, numbers as 0, no punctuation and no accents.
    """
    splitter = _splitter()
    if simplify:
        text = text.lower()
    try:
        text.encode() if not text.isascii() else None
    except UnicodeEncodeError:  # lone surrogates
        text = text.encode("utf-8", "replace").decode()
    while True:
        words = splitter.split(text, simplify)
        if not words.missing_pages and not words.unknown:
            return words
        for number in words.missing_pages:
            splitter.learn_page(number, *_page(number))
        for chunk in words.unknown:
            splitter.learn(chunk, [len(part.encode()) for part in pieces(chunk)], False)


def words_of(text: str) -> list[str]:
    """The words of a text, symbols among them."""
    return list(split(text).list())
