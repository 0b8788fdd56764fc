"""The training loop and what feeds it. pretrain, sft and rl are thin on top of this folder."""

from .loader import Blend, Documents, MicroBatch, Mixture, Rows, SequenceLoader
from .loop import Settings, restore, supervised_loop
from .packing import PackedLoader
from .schedule import learning_rate

__all__ = ["Blend", "Documents", "MicroBatch", "Mixture", "PackedLoader", "Rows", "SequenceLoader", "Settings", "learning_rate", "restore", "supervised_loop"]
