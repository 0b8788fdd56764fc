"""Model: a decoder with its weights, forward, backward, optimizer step and cached decoding, on NumPy arrays.

A thin face over the compiled core (csrc/model). Parameters and gradients are float32 views into one buffer each, so an
algorithm written in NumPy reads and writes them in place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from freedive import _core
from freedive.model.batch import Batch
from freedive.model.config import DecoderConfig
from freedive.model.lora import LoRA, check_lora
from freedive.ops import cache_code, compute_code, fast_bf16
from freedive.runs import UserError, available_memory, default_threads, human_bytes


class Outputs:
    """Per-token outputs of N tokens, indexed by the predicting position; rows without a target (-1) are 0.

    Those of `forward_backward` come when they are looked at: who looks waits for the device, which is why a training loop does so after its step.
    """

    def __init__(self, come: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]):
        self._come = come
        self._arrays: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def _have(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._arrays is None:
            self._arrays = self._come()
        return self._arrays

    @property
    def logprobs(self) -> np.ndarray:
        """float32 [N] or [N, K], nats: log p of the target at the given temperature"""
        return self._have()[0]

    @property
    def entropy(self) -> np.ndarray:
        """float32 [N], nats"""
        return self._have()[1]

    @property
    def lse(self) -> np.ndarray:
        """float32 [N], log-sum-exp of the logits divided by the temperature"""
        return self._have()[2]


def _positive(temperature: float) -> float:
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; log-probs need a positive, finite one (0 means greedy in decode and generate only)")
    return temperature


@dataclass(frozen=True)
class Plan:
    """Bytes a model will take, by use."""

    rows: tuple[tuple[str, int], ...]
    own_memory: bool = False  # of a device that has its own: a checkpoint is then the host's

    @property
    def total(self) -> int:
        return sum(b for _, b in self.rows)

    @property
    def snapshot(self) -> int:
        """Beside these: what a checkpoint copies, parameters and moments. On a GPU of the host, pinned, and kept for the next one; else while it is written."""
        return 3 * dict(self.rows)["gradients"]

    def __str__(self) -> str:
        whose = "of the host's for a checkpoint" if self.own_memory else "while a checkpoint is written"
        beside = f", and {human_bytes(self.snapshot)} {whose}" if self.snapshot else ""
        return ", ".join(f"{name} {human_bytes(b)}" for name, b in self.rows if b) + f"; in all {human_bytes(self.total)}{beside}"


MOST_THREADS = 1024


RECOMPUTE = ("none", "ffn", "block")
RECOMPUTE_HELP = "none, ffn or block: what a step keeps of each layer for its backward pass; less memory, more time, the same bits"


def check_recompute(recompute: str) -> str:
    """The level itself; UserError for one that is none of RECOMPUTE."""
    if recompute not in RECOMPUTE:
        raise UserError(f"recompute is {recompute!r}", hint="none, ffn or block")
    return recompute


def plan(config: DecoderConfig, max_tokens: int, max_seqs: int, trainable: bool = True, threads: int | None = None, lora: LoRA | None = None,
         recompute: str = "none", device: str = "cpu", dtype: str = "float32") -> Plan:  # fmt: skip
    """The memory a Model of these capacities will take on that device, whose kernels have work space of their own; allocates nothing. dtype "bfloat16"
    keeps half of what float32 keeps of most activations."""
    adapter = None if lora is None else lora.core_dict()
    capacities = (threads or default_threads(), max_tokens, max_seqs, trainable, adapter, device, check_recompute(recompute), compute_code(check_dtype(dtype, device)))
    return Plan(tuple(_core.plan(config.core_dict(), *capacities)), _core.free_memory(device) is not None)


def check_fits(config: DecoderConfig, max_tokens: int, max_seqs: int, trainable: bool = True, threads: int | None = None,
               packed_bytes: int | None = None, lora: LoRA | None = None, recompute: str = "none", device: str = "cpu",
               dtype: str = "float32") -> Plan:  # fmt: skip
    """The plan, or a UserError that says what would fit. Every thread has work space of its own, so their number counts. packed_bytes: of
    the weights where they are not float32."""
    def planned(tokens: int) -> Plan:
        p = plan(config, tokens, max_seqs, trainable, threads, lora, recompute, device, dtype)
        return p if packed_bytes is None else replace(p, rows=tuple((name, packed_bytes if name == "parameters" else size) for name, size in p.rows))

    if threads is not None and threads > MOST_THREADS:
        raise UserError(f"threads is {threads}; it must be at most {MOST_THREADS}", hint="more threads than cores make nothing faster")
    p = planned(max_tokens)
    free = _core.free_memory(device) or available_memory()  # a GPU's or the host's
    if p.total <= free:
        return p
    tokens = max_tokens
    while tokens > 32 and planned(tokens).total > free:
        tokens //= 2
    fits = planned(tokens).total <= free
    hint = f"a batch of {tokens} tokens at a time would fit" if fits else "its weights alone do not fit: choose a smaller model (a lower --depth)"
    if trainable and recompute != "block" and plan(config, max_tokens, max_seqs, trainable, threads, lora, "block", device, dtype).total <= free:
        hint = f'{hint}, and this one with recompute "block"'
    raise UserError(f"this model needs {human_bytes(p.total)} of memory ({p}), but {human_bytes(free)} are available", hint=hint)


def check_checkpoint_fits(p: Plan) -> None:
    """For a run that writes checkpoints: UserError where the host has no memory for what one copies of a device's."""
    if p.own_memory and p.snapshot > (free := available_memory()):
        raise UserError(f"a checkpoint of this model is {human_bytes(p.snapshot)} of the host's memory, but {human_bytes(free)} are available", hint="choose a smaller model (a lower --depth)")


def check_device(device: str) -> None:
    """UserError for a device that this build does not have or this machine cannot use, and why."""
    if (error := _core.device_error(device)) is not None:
        build = ", or build it: pip install . -C cmake.define.FREEDIVE_CUDA=ON (README)" if "has no _cuda.so" in error else ""
        raise UserError(error, hint=f"use --device cpu{build}")


def check_dtype(dtype: str, device: str = "cpu") -> str:
    """"float32" or "bfloat16"; "auto" is the faster of the two on the device. UserError for any other name."""
    if dtype not in ("float32", "bfloat16", "auto", "int8"):
        raise UserError(f"dtype is {dtype!r}", hint="float32, bfloat16 (products of bfloat16 numbers, sums in float32), auto, or for inference int8")
    return ("bfloat16" if fast_bf16(device) else "float32") if dtype == "auto" else dtype


def check_training(device: str, dtype: str, recompute: str) -> None:
    """UserError for a device, a dtype or a level of recompute with which nothing is trained; asks for none of the data, so it comes first."""
    check_device(device)
    check_recompute(recompute)
    if check_dtype(dtype, device) == "int8":
        raise UserError("dtype int8 is for inference", hint="train in float32 or bfloat16")


def check_kv_cache_dtype(kv_cache_dtype: str, dtype: str) -> str:
    """"float32", "bfloat16" or "int8"; "auto" is bfloat16 where products of `dtype` round to it anyway, so no bit changes, else float32.
    UserError for any other name."""
    if kv_cache_dtype not in ("float32", "bfloat16", "int8", "auto"):
        raise UserError(f"kv_cache_dtype is {kv_cache_dtype!r}", hint="float32, bfloat16, int8 or auto")
    return ("bfloat16" if dtype == "bfloat16" else "float32") if kv_cache_dtype == "auto" else kv_cache_dtype


class Model:
    """A decoder and its weights. Not thread-safe: one call at a time.

    max_tokens, max_seqs and max_targets are the most N tokens, S sequences and K candidate ids per token of one batch; memory is taken
    for them at once. device: one of `freedive.ops.devices()`. threads: of the CPU, default the usable cores, or FREEDIVE_THREADS; no result depends on them. trainable=False saves the
    gradients and moments: `score` and `decode` only. dtype "bfloat16" rounds the operands of products to bfloat16 (weights, sums, gradients
    and moments stay float32): twice as fast where `freedive.ops.fast_bf16()`, slower elsewhere; "auto" chooses.
    Weights are zero until `init`, `load_state` or `load_pretrained`.

    recompute says what a training step keeps of each layer for the backward pass: "none" everything, "ffn" all but the outputs of the up projection, "block"
    the layer's input alone. The rest is computed again there, the same bits: less memory for one product, or one forward pass, more (`plan` tells the bytes).

    lora freezes the weights and puts an adapter beside them (model/lora.py): `adapter`, `gradients`, moments, `state` and the optimizer are then of its
    matrices alone. It is zero until `init_adapter` or `Adapter.into`; `without_adapter` gives the frozen model, for example as a reference.

    packed_bytes, a number, makes a model for inference or with lora whose matrices come packed, in types of 16, 8 or 4 bits (model/packed.py), and take so
    many bytes; dtype may then be "int8" too: rows are rounded to 8 bits before they are multiplied with integer weights.

    Raises UserError if it does not fit in memory or the device is not there, ValueError for capacities below 1. Batches beyond the
    capacities, ids outside the vocabulary and positions beyond config.max_positions are a ValueError in every call that takes a batch.
    """

    def __init__(self, config: DecoderConfig, *, max_tokens: int = 4096, max_seqs: int = 256, max_targets: int = 1, threads: int | None = None,
                 device: str = "cpu", trainable: bool = True, dtype: str = "float32", packed_bytes: int | None = None,
                 lora: LoRA | None = None, recompute: str = "none"):  # fmt: skip
        check_device(device)
        if trainable:
            check_training(device, dtype, recompute)
        dtype = check_dtype(dtype, device)
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; it must be at least 1")
        if packed_bytes is not None and trainable and lora is None:
            raise UserError("packed weights cannot be trained", hint='load the model with weights="float32", or train an adapter beside them (lora)')
        self.lora = None if lora is None else check_lora(lora, config)
        if packed_bytes is None and dtype == "int8":
            raise UserError("dtype int8 needs weights of 8 or 4 bits, and these are float32", hint='load the model with weights="int8" (on the command line: --weights int8)')
        self.plan = check_fits(config, max_tokens, max_seqs, trainable, threads, packed_bytes, self.lora, check_recompute(recompute), device, dtype)
        self.packed: tuple[str, ...] = ()  # types of the matrices where they are packed, e.g. ("Q4_1", "Q8_0")
        self.config, self.max_tokens, self.max_seqs, self.trainable = config, max_tokens, max_seqs, trainable
        self.device, self.threads, self.dtype = device, threads or default_threads(), dtype
        cos, sin = config.rope_tables()
        self.vocab_mask: np.ndarray | None = None  # uint8 [vocab_size], 0 for ids that stand for nothing; None is all
        self.weight_version = 0  # rises whenever the weights may have changed: keys and values computed before are stale
        self._core = _core.Decoder(config.core_dict(), self.threads, max_tokens, max_seqs, max_targets, trainable, cos, sin, compute_code(dtype),
                                   None if self.lora is None else self.lora.core_dict(), device, recompute)  # fmt: skip
        self._table = _core.parameter_table(config.core_dict())
        self._parameters = self._views("parameters", self._table)
        trained = self._table if self.lora is None else _core.adapter_table(config.core_dict(), self.lora.core_dict())
        self._adapter = self._views("adapter", trained) if self.lora is not None else {}
        self._gradients = self._views("gradients", trained) if trainable else {}
        self._adapter_on = True
        self.step_count = 0  # of the optimizer; bias correction depends on it
        self.lock = threading.RLock()  # held by engines over a step; every call of the decoder waits for the one before anyway

    def _views(self, which: str, table: list[tuple[str, list[int], int, bool]]) -> dict[str, np.ndarray]:
        flat = self._core.buffer(which)
        return {name: flat[at : at + int(np.prod(shape))].reshape(shape) for name, shape, at, _ in table}

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """Name -> float32 view of the weights, shaped as in PyTorch (matrices [out, in]). After writing through a view you kept, call `touch()`.

        Raises UserError for a model whose weights are packed.
        """
        if self.packed:
            raise UserError(f"this model's weights are packed ({', '.join(self.packed)}), not float32", hint='load it with weights="float32"')
        self.touch()
        self._core.finish()
        return self._parameters

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """Name -> float32 view of dL/dparameter, shaped as `parameters` (with lora as `adapter`), added to by `backward` until `zero_grad`. {} if not trainable."""
        self._core.finish()
        return self._gradients

    @property
    def adapter(self) -> dict[str, np.ndarray]:
        """"layers.0.q_proj.lora_A" -> float32 view [rank, in], lora_B [out, rank]; {} without lora. After writing through a view, call `touch()`."""
        self._core.finish()
        return self._adapter

    @property
    def adapter_on(self) -> bool:
        """Whether the adapter takes part. Setting it changes what the model computes: caches of keys and values from before are stale."""
        return self._adapter_on

    @adapter_on.setter
    def adapter_on(self, on: bool) -> None:
        if on != self._adapter_on:
            self._core.use_adapter(on)
            self._adapter_on = on
            self.weight_version += 1

    @contextmanager
    def without_adapter(self) -> Iterator[Model]:
        """Within it this is the frozen model: the reference of DPO and of a KL penalty."""
        before = self.adapter_on
        self.adapter_on = False
        try:
            yield self
        finally:
            self.adapter_on = before

    def touch(self) -> None:
        """Weights were written from outside: forget packed copies of them, and what caches keyed by `weight_version` hold."""
        self.weight_version += 1
        self._core.touch()

    def init(self, seed: int = 0, zero_outputs: bool = False) -> Model:
        """Normal weights of std 0.02, those that write into the residual stream divided by sqrt(2 n_layer) (GPT-2); norms 1, biases and the table of pairs 0.

        zero_outputs: those that write into the residual stream are 0 and a head of its own has std 0.001, so that every block begins as
        the identity and all tokens as likely; matrices which read have std 1/sqrt(columns) then.
        """
        rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
        for name, view in self.parameters.items():
            if name.endswith("norm.weight"):
                view[...] = 1.0
            elif name.endswith(".bias") or name == "embed_bigrams.weight":
                view[...] = 0.0
            else:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / np.sqrt(2 * self.config.n_layer) if into_residual else 0.02
                if zero_outputs:
                    std = 0.0 if into_residual else 0.001 if name == "lm_head.weight" else 0.02 if name.startswith("embed") else view.shape[1] ** -0.5
                view[...] = rng.standard_normal(view.shape, dtype=np.float32) * np.float32(std)
        return self

    def set_vocab_mask(self, mask: np.ndarray) -> None:
        """mask uint8 [vocab_size]: ids with 0 (padding rows, holes) get no probability and are never sampled. ValueError for another length."""
        self._core.set_vocab_mask(np.ascontiguousarray(mask, np.uint8))
        self.vocab_mask = np.array(mask, np.uint8)

    # ---- training ----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, temperature: float = 1.0) -> Outputs:
        """Per-token outputs (log-probs like batch.targets, entropy and lse [N], float32, nats); activations are kept for one `backward`.

        temperature divides the logits; it must be positive and finite. Raises ValueError for a temperature or batch that cannot be,
        RuntimeError if the model is not trainable.
        """
        return self._forward(batch, temperature, True)

    def score(self, batch: Batch, temperature: float = 1.0) -> Outputs:
        """The same numbers as `forward`, bit for bit, keeping nothing: a `backward` that was due is no longer possible. Raises as `forward`."""
        return self._forward(batch, temperature, False)

    def _forward(self, batch: Batch, temperature: float, keep: bool) -> Outputs:
        got = self._core.forward(batch.tokens, batch.targets, batch.positions, batch.cu_seqlens, _positive(temperature), keep, batch.prefixes)
        return Outputs(lambda: got)

    def hidden(self, batch: Batch) -> np.ndarray:
        """The final hidden states, after the last norm: float32 [N, d_model]. Targets are not read; keeps nothing. Raises as `score`."""
        none = np.full(len(batch.tokens), -1, np.int32)
        self._core.forward(batch.tokens, none, batch.positions, batch.cu_seqlens, 1.0, False, batch.prefixes)
        return self._core.hidden()

    def last_hidden(self) -> np.ndarray:
        """The final hidden states of the last `forward` or `score`, after the last norm: float32 [N, d_model], a copy."""
        return self._core.hidden()

    def backward(self, dlogprobs: np.ndarray | None = None, dentropy: np.ndarray | None = None, dlse: np.ndarray | None = None,
                 dhidden: np.ndarray | None = None) -> None:  # fmt: skip
        """Add to `gradients`, given the loss's derivative by each per-token output of the last `forward`; None is zero everywhere.

        dlogprobs has the shape of the batch's targets ([N] or [N, K]), dentropy and dlse [N]; dhidden [N, d_model] is by `last_hidden`, of a
        head of the caller's own (values, rewards); anything that converts to float32.
        Raises ValueError for another number of entries, RuntimeError without a `forward` that was not followed by a `backward` yet.
        """
        f32 = lambda a: None if a is None else np.ascontiguousarray(a, np.float32)
        more = () if dhidden is None else (f32(dhidden),)
        self._core.backward(f32(dlogprobs), f32(dentropy), f32(dlse), *more)

    def forward_backward(self, batch: Batch, dlogprobs: np.ndarray, temperature: float = 1.0) -> Outputs:
        """`forward` and `backward` in one, for derivatives known beforehand (pretraining, SFT): the head's logits are computed once.

        dlogprobs, float32 [N] or [N, K] like batch.targets: the loss's derivative by each log-prob. Returns the outputs, for which a device is waited for when they are
        looked at; `gradients` get the same bits added as by the two calls. Raises as they do.
        """
        d = np.ascontiguousarray(dlogprobs, np.float32)
        return Outputs(self._core.forward_backward(batch.tokens, batch.targets, batch.positions, batch.cu_seqlens, d, _positive(temperature), batch.prefixes).wait)

    def zero_grad(self) -> None:
        """Set all gradients to 0. Raises ValueError if the model is not trainable."""
        self._core.zero_gradients()

    def adamw(self, lr: float, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.1, max_norm: float = 1.0) -> float:
        """One AdamW step (decoupled decay, on matrices only; Loshchilov & Hutter, arXiv:1711.05101). Returns the gradient norm before clipping.

        The gradient is scaled down to the norm max_norm if it is longer. A non-finite norm leaves weights, moments and step_count as they
        were; the caller sees it in the return value. Raises ValueError if the model is not trainable.
        """
        t = self.step_count + 1
        hyper = np.array([lr, beta1, beta2, eps, weight_decay, max_norm, 1 - beta1**t, 1 - beta2**t], np.float32)
        norm = float(self._core.adamw(hyper))
        self.weight_version += 1
        if np.isfinite(norm):
            self.step_count = t
        return norm

    def muon(self, lr: float, *, adamw_lr: float, embedding_lr: float | None = None, head_lr: float | None = None, momentum: float = 0.95,
             nesterov: bool = True, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.1, max_norm: float = 1.0, scale: str = "match_rms_adamw") -> float:  # fmt: skip
        """One Muon step on the layers' matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon), AdamW on the rest: vectors with adamw_lr,
        embeddings (a tied head with them) with embedding_lr, a head of its own with head_lr (both adamw_lr if not given). Returns the gradient
        norm before clipping.

        Each logical matrix (q, k, v, o, gate, up, down) steps by its momentum with all singular values made about 1 (four iterations of
        Polar Express, arXiv:2505.16932), times lr and a factor of its shape [rows, columns]: "match_rms_adamw", 0.2 sqrt(max(rows, columns)), steps as long as AdamW's, so its lr fits (arXiv:2502.16982);
        "original", sqrt(max(1, rows / columns)), lr about 0.02; "spectral", sqrt(rows / columns). A zero gradient without momentum moves nothing
        but the decay. A non-finite norm changes nothing. The momentum is the moment "m" of `state`; "v" stays 0 for these matrices. The
        first step takes scratch memory of two matrices of the largest size and two squares of its smaller side; on the CPU every thread has such of its own,
        for matrices of at most a million numbers. Raises ValueError if the model is not trainable or for another scale.
        """
        t = self.step_count + 1
        rates = (adamw_lr, adamw_lr if embedding_lr is None else embedding_lr, adamw_lr if head_lr is None else head_lr)
        rest = np.array([[rate, beta1, beta2, eps, weight_decay, max_norm, 1 - beta1**t, 1 - beta2**t] for rate in rates], np.float32)
        hyper = np.array([lr, momentum, float(nesterov), weight_decay, max_norm], np.float32)
        norm = float(self._core.muon(hyper, scale, rest))
        self.weight_version += 1
        if np.isfinite(norm):
            self.step_count = t
        return norm

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def trained(self) -> np.ndarray:
        """float32 [P] view of what the optimizer moves: all parameters, or with lora the adapter. After writing through it, call `touch()`."""
        return self._core.buffer(self._trained)

    @property
    def _trained(self) -> str:
        return "parameters" if self.lora is None else "adapter"

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs, as copies: "parameters" float32 [P], flat; "step_count" int64 [1]; if trainable the moments "m" and "v" [P].

        With lora P counts the adapter, and "parameters" is called "adapter".
        """
        if self.packed and self.lora is None:
            raise UserError("a model with packed weights has no state to save", hint='load it with weights="float32"')
        out = {self._trained: self._core.buffer(self._trained).copy(), "step_count": np.array([self.step_count], np.int64)}
        if self.trainable:
            out |= {which: self._core.buffer(which).copy() for which in ("m", "v")}
        return out

    def snapshot(self) -> Callable[[], dict[str, np.ndarray]]:
        """`state` as it is now, without waiting for it: call what is returned, from any thread, to get it.

        On a GPU the copy runs beside the next forward and backward passes; only the optimizer's next step waits for it.
        """
        if self.packed and self.lora is None:
            raise UserError("a model with packed weights has no state to save", hint='load it with weights="float32"')
        core, names, step_count = self._core.snapshot(), (self._trained, "m", "v") if self.trainable else (self._trained,), self.step_count

        def arrays() -> dict[str, np.ndarray]:
            core.wait()
            return {name: core.array(i) for i, name in enumerate(names)} | {"step_count": np.array([step_count], np.int64)}

        return arrays

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Take what `state` of a model of the same configuration gave. Raises UserError if it is another model's; a missing moment is a KeyError."""
        if self.packed and self.lora is None:
            raise UserError("a model with packed weights takes no state", hint='load it with weights="float32"')
        if self._trained not in state:
            raise UserError("the checkpoint is of another kind", hint="an adapter's is not a whole model's: was --lora-rank changed?")
        for which in (self._trained, "m", "v") if self.trainable else (self._trained,):
            buffer = self._core.buffer(which)
            if state[which].shape != buffer.shape:
                raise UserError(f"the checkpoint's {which} hold {state[which].size} numbers, this model has {buffer.size}")
            buffer[...] = state[which]
        self.step_count = int(state["step_count"][0])
        self.touch()

    # ---- decoding ----------------------------------------------------------------------------------------------

    def new_cache(self, blocks: int, dtype: str = "float32") -> Any:
        """A paged key-value cache of `blocks` blocks of 32 positions, for all layers: `cache_block_bytes(dtype)` each.

        dtype: "float32", "bfloat16" or "int8" (with a scale for each position and key-value head). Raises ValueError for fewer than one block
        or another dtype, MemoryError where there is no room.
        """
        return self._core.new_cache(blocks, cache_code(dtype))

    def cache_block_bytes(self, dtype: str = "float32") -> int:
        """Bytes of one block of 32 positions of a cache, all layers. ValueError for a dtype that caches do not have."""
        return self._core.cache_block_bytes(cache_code(dtype))

    def copy_block(self, cache: Any, source: int, target: int) -> None:
        """Copies a block's keys and values, all layers, to another block. Raises ValueError for a block outside the cache."""
        self._core.copy_block(cache, source, target)

    def decode(self, cache: Any, batch: Batch, past_lens: np.ndarray, block_table: np.ndarray, *, temperature: np.ndarray, top_k: np.ndarray,
               top_p: np.ndarray, min_p: np.ndarray, seeds: np.ndarray, counters: np.ndarray,
               rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Run the new tokens of S sequences, append their keys and values to the cache, and sample the next token of each sequence.

        cache          from `new_cache`
        batch          the new tokens only, N of them, at least one a sequence; positions[i] counts from the sequence's first token, so those
                       of sequence s begin at past_lens[s]; targets are not read
        past_lens      int32 [S], how many tokens of each sequence are in the cache already
        block_table    int32 [S, M]: position p of sequence s lies in block block_table[s, p // 32], slot p % 32
        temperature    float32 [S]; 0 takes the largest logit
        top_k          int32 [S], 0 is off        top_p    float32 [S], 1 is off        min_p    float32 [S], 0 is off
        seeds, counters    uint64 [S]: the random number of a row is a function of these two alone, whatever else is in the batch

        rows           int32 [R], which entries of the batch to sample after, at most max_seqs of them; None: the last of each sequence,
                       R = S. The sampling arrays then have R entries instead of S

        Returns (tokens int32 [S], logprobs float32 [S]): the log-prob, in nats, at the row's temperature (at 1 for temperature 0) before
        top_k, top_p and min_p, the same bits as `forward`'s. Raises ValueError for arrays of another length, a sequence longer than its blocks
        and a block outside the cache.
        """
        return self._core.decode(cache, batch.tokens, batch.positions, batch.cu_seqlens, np.ascontiguousarray(past_lens, np.int32),
                                 np.ascontiguousarray(block_table, np.int32), np.ascontiguousarray(temperature, np.float32),
                                 np.ascontiguousarray(top_k, np.int32), np.ascontiguousarray(top_p, np.float32),
                                 np.ascontiguousarray(min_p, np.float32), np.ascontiguousarray(seeds, np.uint64),
                                 np.ascontiguousarray(counters, np.uint64),
                                 None if rows is None else np.ascontiguousarray(rows, np.int32))  # fmt: skip

    def decode_steps(self, cache: Any, steps: int, tokens: np.ndarray, past_lens: np.ndarray, block_table: np.ndarray, *, temperature: np.ndarray,
                     top_k: np.ndarray, top_p: np.ndarray, min_p: np.ndarray, seeds: np.ndarray, counters: np.ndarray,
                     stop_ids: np.ndarray, remaining: np.ndarray | None = None) -> _core.Visit:  # fmt: skip
        """`decode` of one new token a sequence, `steps` times over: each sampled token is the next one's input, and none is looked at between.

        tokens         int32 [S], the new token of each; it stands at position past_lens[s]
        block_table    int32 [S, M], with blocks for past_lens + min(steps, remaining) positions
        counters       uint64 [S], of the first step; each later one adds 1
        stop_ids       int32 [S, J], -1 for none: a sequence that has sampled one of its own has stopped
        remaining      int32 [S], how many tokens each may sample, in this call and those that go on from it (decode_on); None: as many as steps

        Of a sequence that has stopped, or sampled all it may, nothing is written or attended to any more. The rest is as in `decode`. Returns at once on
        a device; `wait()` then gives (tokens int32 [K, S], logprobs float32 [K, S]), with the bits of K calls of `decode`, -1 and 0 behind a
        sequence's last. K is steps; on the CPU less where all have stopped. Raises ValueError as `decode`, and where a sequence would pass the context.
        """
        left = np.full(len(tokens), steps, np.int32) if remaining is None else np.ascontiguousarray(remaining, np.int32)
        return self._core.decode_steps(cache, steps, np.ascontiguousarray(tokens, np.int32), np.ascontiguousarray(past_lens, np.int32), left,
                                       np.ascontiguousarray(block_table, np.int32), np.ascontiguousarray(temperature, np.float32),
                                       np.ascontiguousarray(top_k, np.int32), np.ascontiguousarray(top_p, np.float32),
                                       np.ascontiguousarray(min_p, np.float32), np.ascontiguousarray(seeds, np.uint64),
                                       np.ascontiguousarray(counters, np.uint64), np.ascontiguousarray(stop_ids, np.int32))  # fmt: skip

    def decode_on(self, visit: _core.Visit, block_table: np.ndarray) -> _core.Visit | None:
        """As many steps more of the sequences of a `decode_steps`, from where it ends, which nobody needs to have seen: `wait` for it may come later.

        block_table int32 [S, M] as there, with blocks for the positions of both. None where the model has run another batch since. Raises ValueError as `decode_steps`.
        """
        return self._core.decode_on(visit, np.ascontiguousarray(block_table, np.int32))

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Logits float32 [R, vocab_size] after `rows` (int32 [R], at most max_seqs) of the last batch, before mask and temperature.

        The same bits the head makes log-probs of. Raises ValueError for rows outside of that batch.
        """
        return self._core.logits(np.ascontiguousarray(rows, np.int32))
