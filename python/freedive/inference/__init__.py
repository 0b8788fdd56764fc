"""Generation: the engine, its paged cache, loading a model folder, the terminal chat (talk 1.5)."""

from .engine import Completion, Engine, Params
from .load import LM, load

__all__ = ["LM", "Completion", "Engine", "Params", "load"]
