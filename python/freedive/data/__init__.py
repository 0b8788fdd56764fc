"""Raw pages to clean text, and reading text back: `run(DataConfig(...))`, `iter_texts(path)`."""

from .stage import DataConfig, run
from .texts import is_artefact, iter_documents, iter_texts
from .waterfall import print_waterfall

__all__ = ["DataConfig", "is_artefact", "iter_documents", "iter_texts", "print_waterfall", "run"]
