"""A reward model: any of our models, a GGUF file or an adapter beside one, with a row of numbers on its final hidden state at the end-of-turn
token: one number for a whole answer, higher is better (Stiennon et al. 2020, arXiv:2009.01325).

On disk a reward model's folder holds `reward.json` (kind, centre, scale, and what it stands on) and `reward_head.safetensors` (score.weight [1, d],
score.bias [1]), beside what was trained: a whole model, an adapter, or, where only the row was, nothing but the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freedive.inference import load_model, load_tokenizer, save_model_folder
from freedive.inference.folder import base_and_adapter
from freedive.model import Batch, Model, open_weights
from freedive.rl.values import Head
from freedive.runs import UserError, read_json, write_json_atomic
from freedive.tokenizer import Tokenizer

from .preferences import answer_ids, prompt_ids

FILE, HEAD = "reward.json", "reward_head.safetensors"
KINDS = ("model", "adapter", "head")  # what learned beside the row
MICRO_TOKENS, MAX_SEQS = 4096, 256


def is_reward_model(path: Path | str) -> bool:
    """Whether a path is a reward model's folder."""
    return (Path(path) / FILE).is_file()


def last_hidden(model: Model, sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """The final hidden state of each sequence's last token: float32 [S, d]. They must fit into one batch."""
    batch = Batch.pack((s, np.full(len(s), -1, np.int32)) for s in sequences)
    return model.hidden(batch)[batch.cu_seqlens[1:] - 1]


def in_batches(sequences: Sequence[Sequence[int]], max_tokens: int, max_seqs: int) -> list[list[int]]:
    """Indices of the sequences, shortest first, in batches that fit."""
    parts: list[list[int]] = []
    size = 0
    for i in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        if not parts or size + len(sequences[i]) > max_tokens or len(parts[-1]) == max_seqs:
            parts.append([])
            size = 0
        parts[-1].append(i)
        size += len(sequences[i])
    return parts


class RewardModel:
    """`rewards(prompts, answers)`, and a reward function of TRL's form: `freedive rl --reward FOLDER`."""

    def __init__(self, model: Model, tok: Tokenizer, row: np.ndarray, name: str = "reward_model"):
        self.model, self.tok, self.head = model, tok, Head(model.config.d_model)
        self.head.row[:] = row
        self.__name__ = name

    @staticmethod
    def load(folder: Path, threads: int | None = None, device: str = "cpu", dtype: str = "auto", micro_tokens: int = MICRO_TOKENS) -> RewardModel:
        """A reward model's folder. Raises UserError for what is none, or is damaged."""
        found = _described(folder)
        where = Path(found["base_model_name_or_path"]) if found["kind"] == "head" else folder
        tok = Tokenizer.load(folder) if (folder / "tokenizer").is_dir() else load_tokenizer(where)
        longest = open_weights(base_and_adapter(where, None)[0]).config.max_positions
        model = load_model(where, tok, max_tokens=max(micro_tokens, longest if longest <= 4 * micro_tokens else micro_tokens), max_seqs=MAX_SEQS, threads=threads,
                           device=device, dtype=dtype, trainable=False, weights="auto")  # fmt: skip
        return RewardModel(model, tok, _row(folder, model.config.d_model), found.get("name", folder.name))

    def score(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [S], each read at its last token; NaN for one that is longer than the model takes."""
        out = np.full(len(sequences), np.nan, np.float32)
        longest = min(self.model.max_tokens, self.model.config.max_positions)
        fitting = [i for i, s in enumerate(sequences) if 0 < len(s) <= longest]
        for part in in_batches([sequences[i] for i in fitting], self.model.max_tokens, self.model.max_seqs):
            chosen = [fitting[i] for i in part]
            out[chosen] = self.head(last_hidden(self.model, [sequences[i] for i in chosen]))
        return out

    def rewards(self, prompts: Sequence[Any], answers: Sequence[Any]) -> np.ndarray:
        """float32 [S] of prompts (texts or messages) and answers (texts, or messages of the assistant and what stands between)."""
        sequences = []
        for prompt, answer in zip(prompts, answers, strict=True):
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            sequences.append([*prompt_ids(self.tok, messages), *answer_ids(self.tok, messages, answer)])
        return self.score(sequences)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any) -> list[float | None]:
        return [None if np.isnan(r) else float(r) for r in self.rewards(prompts, completions)]


def save_reward_model(folder: Path, model: Model, tok: Tokenizer, row: np.ndarray, kind: str, trained_from: Path, **told: Any) -> None:
    """Into a folder that is being written. row float64 [d + 1]; `told` goes into reward.json."""
    from safetensors.numpy import save_file

    if kind == "head":
        tok.save(folder / "tokenizer")
        base = str(trained_from.resolve())
    else:
        save_model_folder(model, tok, folder, tok.im_end, trained_from=trained_from)
        base = str(base_and_adapter(trained_from, None)[0].resolve())
    save_file({"score.weight": row[None, :-1].astype(np.float32), "score.bias": row[-1:].astype(np.float32)}, str(folder / HEAD))
    write_json_atomic(folder / FILE, {"format": 1, "kind": kind, "base_model_name_or_path": base, **told})


def _described(folder: Path) -> dict[str, Any]:
    if not (folder / FILE).is_file():
        hint = f"{folder}.partial is an unfinished run: run its command again" if Path(f"{folder}.partial").is_dir() else "`freedive reward` writes one"
        raise UserError(f"{folder} is no reward model: it holds no {FILE}", hint=hint)
    found = read_json(folder / FILE)
    if not isinstance(found, dict) or found.get("kind") not in KINDS or not isinstance(found.get("base_model_name_or_path"), str):
        raise UserError(f"{folder / FILE} is damaged: it needs kind ({', '.join(KINDS)}) and base_model_name_or_path")
    base = Path(found["base_model_name_or_path"])
    if found["kind"] == "head" and not base.exists():
        raise UserError(f"{folder} stands on {base}, which is not here", hint=f"put the model there, or write its place into {folder / FILE}")
    return found


def _row(folder: Path, d: int) -> np.ndarray:
    """float64 [d + 1]"""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        held = load_file(str(folder / HEAD))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{folder / HEAD} cannot be read: {error}") from None
    w, b = held.get("score.weight"), held.get("score.bias")
    if w is None or b is None or w.shape != (1, d) or b.shape != (1,) or not (np.isfinite(w).all() and np.isfinite(b).all()):
        raise UserError(f"{folder / HEAD} must hold score.weight [1, {d}] and score.bias [1], finite numbers", hint="is it another model's?")
    return np.append(w[0].astype(np.float64), b.astype(np.float64))
