"""Generation: the engine, its paged cache, loading a model folder, the terminal chat (talk 1.5)."""

from .engine import Completion, Engine, Params
from .folder import load_model, load_tokenizer, save_model_folder
from .load import LM, load

__all__ = ["LM", "Completion", "Engine", "Params", "load", "load_model", "load_tokenizer", "save_model_folder"]
