"""The rules for words as regular expressions: readable and slow, what csrc/data/words.cpp is tested against."""

from __future__ import annotations

import functools

import regex

from freedive.data.words import CONTRACTIONS

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
    rf"(?:[\p{{L}}\p{{N}}_+\-.]{{2,}}://)?(?:\S+@)?(?:\p{{Nd}}{{1,3}}(?:\.\p{{Nd}}{{1,3}}){{3}}|(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{{0,62}})?"
    rf"[A-Za-z0-9\u00a1-\uffff]\.)+{_LOWER}{{2,63}})(?::\p{{Nd}}{{2,5}})?(?:[/?#]\S*)?"
)


def pieces(chunk: str) -> list[str]:
    """The words of a piece of text without white space; joined, they give the piece again."""
    return [chunk] if len(chunk) > 1000 else _joined(_peeled(chunk, CONTRACTIONS))


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
