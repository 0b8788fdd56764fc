"""Generation: the engine, its paged cache, loading a model, tools, the terminal chat (talk 1.5, 3)."""

from .engine import Engine, Stats
from .folder import load_model, load_tokenizer, save_model_folder
from .grammar import Grammar
from .load import LM, load
from .params import Completion, Params
from .search import BM25
from .tool_loop import ToolLoop
from .tools import Python, Search, calculator

__all__ = ["BM25", "LM", "Completion", "Engine", "Grammar", "Params", "Python", "Search", "Stats", "ToolLoop", "calculator", "load", "load_model",
           "load_tokenizer", "save_model_folder"]  # fmt: skip
