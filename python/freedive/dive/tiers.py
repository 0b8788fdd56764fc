"""How much of everything a dive does: one table a tier. All counts are of steps, rows and tokens, never of seconds.

smoke   proves that every stage works, in a minute on 2 cores; its model has learned next to nothing
demo    about ten minutes on 2 cores; a million parameters that know a town and learn to add
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Tier:
    # 1.1 the crawl (freedive.tasks.crawl.SCALES) and the data stage
    scale: str
    quality: Literal["none", "basic", "gopher", "fineweb", "fineweb-paper"]  # rules of the data stage
    max_line_copies: int
    val_fraction: float
    # 1.2
    vocab_size: int
    # 1.3, 1.4: the base model
    depth: int
    context: int
    pretrain_epochs: float
    pretrain_batch: int  # tokens of an optimizer step
    pretrain_lr: float | None  # None: from the width
    pretrain_eval_every: int  # steps
    max_pretrain_steps: int  # of a user's own pages, of which there may be many
    # the exam before and after SFT and RL: every n-th question of the quiz, held-out sums, words to spell
    quiz_every: int
    quiz_every_base: int  # the base model never stops, so each of its answers is as long as allowed
    exam_sums: int  # a user's own: held-out problems
    exam_base: int  # a user's own: questions for the base model
    exam_new_tokens: int
    # 2
    sft_epochs: float
    sft_batch: int
    sft_lr: float | None
    sft_replay: float  # part of the tokens that is text of the pages again, against forgetting them
    # 4
    rl_steps: int
    rl_prompts: int
    rl_generations: int
    rl_new_tokens: int
    rl_lr: float | None
    rl_eval_every: int


TIERS = {
    "smoke": Tier(
        scale="smoke", quality="basic", max_line_copies=0, val_fraction=0.05,
        vocab_size=512,
        depth=2, context=128, pretrain_epochs=4.5, pretrain_batch=2048, pretrain_lr=None, pretrain_eval_every=50, max_pretrain_steps=300,
        quiz_every=8, quiz_every_base=36, exam_sums=32, exam_base=32, exam_new_tokens=32,
        sft_epochs=8.0, sft_batch=2048, sft_lr=None, sft_replay=0.25,
        rl_steps=12, rl_prompts=8, rl_generations=8, rl_new_tokens=48, rl_lr=None, rl_eval_every=0,
    ),
    "demo": Tier(
        scale="demo", quality="basic", max_line_copies=0, val_fraction=0.02,
        vocab_size=2048,
        depth=4, context=256, pretrain_epochs=4.5, pretrain_batch=2048, pretrain_lr=None, pretrain_eval_every=100, max_pretrain_steps=2400,
        quiz_every=2, quiz_every_base=24, exam_sums=256, exam_base=96, exam_new_tokens=64,
        sft_epochs=6.0, sft_batch=2048, sft_lr=2e-3, sft_replay=0.5,
        rl_steps=300, rl_prompts=16, rl_generations=8, rl_new_tokens=64, rl_lr=None, rl_eval_every=20,
    ),
}  # fmt: skip
