"""Raw pages to clean text, and reading text back: `run(DataConfig(...))`, `iter_texts(path)`.

The stage, with all it needs to clean pages, is imported when first asked for: training only reads texts.
"""

from typing import TYPE_CHECKING, Any

from .texts import is_artefact, iter_documents, iter_texts

if TYPE_CHECKING:
    from .stage import DataConfig, run
    from .waterfall import print_waterfall

__all__ = ["DataConfig", "is_artefact", "iter_documents", "iter_texts", "print_waterfall", "run"]


def __getattr__(name: str) -> Any:
    if name in ("DataConfig", "run"):
        from . import stage

        return getattr(stage, name)
    if name == "print_waterfall":
        from .waterfall import print_waterfall

        return print_waterfall
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
