"""Published kinds of evaluation: `freedive eval MODEL --suite KIND:FILE`. One file each; a kind is a class with `read` and `measure` (base.py)."""

from .base import KINDS, Item, Suite, register
from .generation import GSM8K, Generation
from .human_eval import HumanEval
from .minimal_pairs import MinimalPairs
from .multiple_choice import MMLU, MultipleChoice

__all__ = ["GSM8K", "KINDS", "MMLU", "Generation", "HumanEval", "Item", "MinimalPairs", "MultipleChoice", "Suite", "register"]
