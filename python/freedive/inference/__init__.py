"""Generation: the engine, its paged cache, loading a model, tools, the terminal chat (talk 1.5, 3)."""

from .engine import Engine, Stats
from .folder import load_model, load_tokenizer, save_model_folder
from .grammar import Grammar
from .load import LM, load
from .params import Completion, Params

__all__ = ["LM", "Completion", "Engine", "Grammar", "Params", "Stats", "load", "load_model", "load_tokenizer", "save_model_folder"]
