"""What a decoder is: DecoderConfig, the presets of published models, and the one dial `from_depth`.

Knows nothing of weights or devices. `to_hf` / `from_hf` translate to and from Hugging Face's config.json.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from freedive.runs import UserError


@dataclass(frozen=True)
class DecoderConfig:
    """One decoder-only transformer. Defaults are those of our own models: a Qwen3 subset."""

    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    d_model: int
    head_dim: int
    d_ff: int
    max_positions: int
    norm: str = "rmsnorm"  # or "layernorm"
    norm_eps: float = 1e-6
    position: str = "rope"  # or "learned"
    rope_theta: float = 10000.0
    rope_scaling: dict[str, float] | None = None  # Llama 3's: factor, low_freq_factor, high_freq_factor, original_max_position_embeddings
    mlp: str = "swiglu"  # or "gelu_tanh"
    attention_bias: bool = False  # on q, k, v
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = True
    tie_embeddings: bool = True
    bigram_rows: int = 0  # of a table of pairs of tokens that is added to the embedding (a hash: pairs may share a row); 0: none

    def __post_init__(self) -> None:
        def need(ok: bool, what: str, hint: str = "") -> None:
            if not ok:
                raise UserError(f"model configuration: {what}", hint=hint)

        for name in ("vocab_size", "n_layer", "n_head", "n_kv_head", "d_model", "head_dim", "d_ff", "max_positions"):
            need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, it must be at least 1")
        need(self.n_head % self.n_kv_head == 0, f"n_head = {self.n_head} is not a multiple of n_kv_head = {self.n_kv_head}")
        need(self.head_dim % 2 == 0 or self.position != "rope", f"head_dim = {self.head_dim} must be even for rotary positions")
        need(self.norm in ("rmsnorm", "layernorm"), f"norm is {self.norm!r}, allowed: rmsnorm, layernorm")
        need(self.position in ("rope", "learned"), f"position is {self.position!r}, allowed: rope, learned")
        need(self.mlp in ("swiglu", "gelu_tanh"), f"mlp is {self.mlp!r}, allowed: swiglu, gelu_tanh")
        need(self.norm == "rmsnorm" or not self.qk_norm, "qk_norm needs norm = rmsnorm")
        need(self.bigram_rows == 0 or 2 <= self.bigram_rows < 2**31, f"bigram_rows is {self.bigram_rows}, it must be at least 2, or 0 for none")
        need(self.bigram_rows == 0 or self.position == "rope", "bigram_rows needs position = rope")

    def core_dict(self) -> dict[str, Any]:
        """The form the compiled core takes."""
        names = ("vocab_size n_layer n_head n_kv_head d_model head_dim d_ff max_positions norm_eps attention_bias attention_out_bias "
                 "mlp_bias qk_norm tie_embeddings bigram_rows").split()  # fmt: skip
        d = {name: getattr(self, name) for name in names}
        return d | {"layernorm": self.norm == "layernorm", "learned_positions": self.position == "learned", "gelu": self.mlp == "gelu_tanh"}

    def n_params(self) -> int:
        """Parameters, tied ones counted once."""
        from freedive import _core

        return sum(math.prod(shape) for _, shape, _, _ in _core.parameter_table(self.core_dict()))

    def train_flops(self, tokens: int, targets: int, context: float, frozen: bool = False) -> float:
        """FLOPs of a forward and backward: 6 per matrix parameter and token, 6 per head parameter and target (positions without a target
        skip the head), and causal attention over sequences of `context` tokens on average. frozen: no gradients of the weights, so 4 per parameter."""
        matrices = self.n_layer * self.d_model * (
            (self.n_head + 2 * self.n_kv_head) * self.head_dim + self.n_head * self.head_dim + (2 if self.mlp == "gelu_tanh" else 3) * self.d_ff
        )
        attention = self.n_layer * self.n_head * self.head_dim * context
        each = 4.0 if frozen else 6.0
        return tokens * (each * matrices + 6.0 * attention) + each * targets * self.vocab_size * self.d_model

    def rope_frequencies(self) -> np.ndarray:
        """Radians a position, float64 [head_dim/2]."""
        frequency = self.rope_theta ** (-np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        s = self.rope_scaling
        if s:  # Llama 3.1's schedule: long wavelengths are stretched by `factor`, short ones kept, the middle blended
            low, high, old = s["low_freq_factor"], s["high_freq_factor"], s["original_max_position_embeddings"]
            wavelength = 2 * math.pi / frequency
            blend = np.clip((old / wavelength - low) / (high - low), 0.0, 1.0)
            frequency = (1 - blend) * frequency / s["factor"] + blend * frequency
        return frequency

    def rope_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, float32 [max_positions, head_dim/2], computed in float64."""
        if self.position != "rope":
            empty = np.zeros((0, 0), np.float32)
            return empty, empty
        frequency = self.rope_frequencies()
        # Frequencies rounded to float32 first, as in Hugging Face, so that exports agree at long range too.
        angle = np.arange(self.max_positions, dtype=np.float64)[:, None] * frequency.astype(np.float32).astype(np.float64)[None, :]
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def replace(self, **changes: Any) -> DecoderConfig:
        return dataclasses.replace(self, **changes)


_GPT2 = dict(norm="layernorm", norm_eps=1e-5, position="learned", mlp="gelu_tanh", attention_bias=True, attention_out_bias=True, mlp_bias=True,
             qk_norm=False, vocab_size=50257, max_positions=1024, head_dim=64)  # fmt: skip
_LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _gpt2(n_layer: int, n_head: int, d_model: int) -> DecoderConfig:
    return DecoderConfig(n_layer=n_layer, n_head=n_head, n_kv_head=n_head, d_model=d_model, d_ff=4 * d_model, **_GPT2)  # type: ignore[arg-type]


PRESETS: dict[str, DecoderConfig] = {
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "llama3": DecoderConfig(128256, 32, 32, 8, 4096, 128, 14336, 8192, norm_eps=1e-5, rope_theta=500000.0, qk_norm=False, tie_embeddings=False),
    "llama3.1": DecoderConfig(128256, 32, 32, 8, 4096, 128, 14336, 131072, norm_eps=1e-5, rope_theta=500000.0, rope_scaling=_LLAMA31,
                              qk_norm=False, tie_embeddings=False),  # fmt: skip
    "qwen3": DecoderConfig(151936, 28, 16, 8, 1024, 128, 3072, 40960, rope_theta=1e6),  # Qwen3-0.6B
    "qwen2.5": DecoderConfig(151936, 24, 14, 2, 896, 64, 4864, 32768, rope_theta=1e6, attention_bias=True, qk_norm=False),  # Qwen2.5-0.5B
    # Our own, for minutes of a CPU: heads and MLP of 4 layers as wide as they learn most in a minute, a head of its own and a table of pairs of tokens
    # (bigram_rows), which costs no product. No other program runs it.
    "pairs": DecoderConfig(4096, 4, 6, 6, 192, 32, 512, 1024, tie_embeddings=False, bigram_rows=131072),
    "smollm2": DecoderConfig(49152, 30, 9, 3, 576, 64, 1536, 8192, norm_eps=1e-5, rope_theta=100000.0, qk_norm=False),  # 135M
}


def preset(name: str, **changes: Any) -> DecoderConfig:
    """A published architecture by name; any field can be changed. Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"unknown model preset {name!r}", hint="presets: " + ", ".join(PRESETS))
    return PRESETS[name].replace(**changes)


def from_depth(depth: int, vocab_size: int, max_positions: int = 1024) -> DecoderConfig:
    """The one dial. Width 32 a layer up to 128 at four layers, then 64 a layer; SwiGLU at 8/3 of the width; heads of 32 while small, then 64, then 128.

    Small models keep few and narrow heads, because below 64 wide a head of 64 would leave one; from 1024 wide on heads of 128 cost
    least per FLOP on a GPU. Keys and values are shared by pairs of heads.
    """
    if depth < 1:
        raise UserError(f"depth is {depth}, it must be at least 1")
    d_model = 32 * depth if depth <= 4 else 64 * depth
    head_dim = 32 if d_model < 384 else 64 if d_model < 1024 else 128
    n_head = max(1, d_model // head_dim)
    n_kv_head = n_head // 2 if n_head % 2 == 0 else n_head
    d_ff = (8 * d_model // 3 + 31) // 32 * 32
    return DecoderConfig(vocab_size, depth, n_head, n_kv_head, d_model, head_dim, d_ff, max_positions)


# ---- Hugging Face's config.json --------------------------------------------------------------------------------


def family(c: DecoderConfig) -> str:
    """Which transformers architecture computes exactly this configuration, but for bigram_rows: "gpt2", "qwen3", "qwen2" or "llama". UserError if none does."""
    if c.norm == "layernorm" and c.position == "learned" and c.mlp == "gelu_tanh" and c.attention_bias and c.attention_out_bias and c.mlp_bias:
        if c.n_head == c.n_kv_head and c.n_head * c.head_dim == c.d_model and not c.qk_norm:
            return "gpt2"
    if c.norm == "rmsnorm" and c.position == "rope" and c.mlp == "swiglu" and not c.mlp_bias:
        if c.qk_norm and not c.attention_bias and not c.attention_out_bias:
            return "qwen3"
        if not c.qk_norm and c.attention_bias == c.attention_out_bias:
            return "llama"
        if not c.qk_norm and c.attention_bias:
            return "qwen2"
    raise UserError("this configuration has no Hugging Face equivalent", hint=f"use a preset ({', '.join(n for n, p in PRESETS.items() if not p.bigram_rows)}) or --depth to export")


def check_exportable(c: DecoderConfig) -> None:
    """UserError for a model that no other program runs."""
    if c.bigram_rows:
        raise UserError("this model has a table of pairs of tokens, which is freedive's own: no other program runs it",
                        hint="train one without --bigram-rows to export it")  # fmt: skip


_CLASSES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}


def to_hf(c: DecoderConfig, vocab_size: int | None = None, special: dict[str, Any] | None = None) -> dict[str, Any]:
    """config.json of the transformers class named by `family`. `special` may give bos_token_id and eos_token_id.

    A model with bigram_rows gets the model_type "freedive", which transformers does not know and so refuses.
    """
    if c.bigram_rows:
        ours = {"family": family(c), "bigram_rows": c.bigram_rows}
        return to_hf(c.replace(bigram_rows=0), vocab_size, special) | {"architectures": ["FreediveForCausalLM"], "model_type": "freedive", "freedive": ours}
    kind = family(c)
    vocab = vocab_size or c.vocab_size
    ids: dict[str, Any] = dict(special or {})
    if kind == "gpt2":
        return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocab, "n_positions": c.max_positions, "n_embd": c.d_model,
                "n_layer": c.n_layer, "n_head": c.n_head, "n_inner": c.d_ff, "activation_function": "gelu_new", "layer_norm_epsilon": c.norm_eps,
                "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": c.tie_embeddings, "torch_dtype": "float32", **ids}  # fmt: skip
    out = {"architectures": [_CLASSES[kind]], "model_type": kind, "vocab_size": vocab,
           "hidden_size": c.d_model, "intermediate_size": c.d_ff, "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head,
           "num_key_value_heads": c.n_kv_head, "head_dim": c.head_dim, "hidden_act": "silu", "max_position_embeddings": c.max_positions,
           "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_theta, "attention_bias": c.attention_bias, "attention_dropout": 0.0,
           "tie_word_embeddings": c.tie_embeddings, "use_sliding_window": False, "torch_dtype": "float32", **ids}  # fmt: skip
    if c.rope_scaling:
        out["rope_scaling"] = {"rope_type": "llama3", **c.rope_scaling}
    return out


def _refuse_other_maths(kind: Any, d: dict[str, Any]) -> None:
    """UserError for a setting of Hugging Face's that changes what a gpt2, llama or qwen3 model computes and that we do not compute."""
    wanted: dict[str, tuple[Any, ...]]
    if kind == "gpt2":
        wanted = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
                  "scale_attn_by_inverse_layer_idx": (False,)}  # fmt: skip
    else:
        wanted = {"hidden_act": ("silu", "swish"), "mlp_bias": (False,), "use_sliding_window": (False, None)}
    for name, allowed in wanted.items():
        if name in d and d[name] not in allowed:
            raise UserError(f"config.json says {name} = {d[name]!r}, which freedive does not compute", hint=f"supported: {allowed[0]!r}")


def from_hf(d: dict[str, Any]) -> DecoderConfig:
    """The inverse of `to_hf`, for config.json files of gpt2, llama (SmolLM2 too), qwen2 and qwen3 models; absent keys mean what they mean
    in transformers. Raises UserError for what we cannot run.
    """
    if not isinstance(d, dict):
        raise UserError("config.json is not a JSON object")
    kind = d.get("model_type")
    if kind == "freedive":
        ours = d.get("freedive")
        if not isinstance(ours, dict) or ours.get("family") not in _CLASSES or type(ours.get("bigram_rows")) is not int:
            raise UserError("config.json of model_type 'freedive' lacks its family or bigram_rows")
        return from_hf(d | {"model_type": ours["family"]}).replace(bigram_rows=ours["bigram_rows"])
    _refuse_other_maths(kind, d)
    try:
        if kind == "gpt2":
            n_embd, n_head = d["n_embd"], d["n_head"]
            changes: dict[str, Any] = dict(
                vocab_size=d["vocab_size"], max_positions=d["n_positions"], head_dim=n_embd // n_head, norm_eps=d.get("layer_norm_epsilon", 1e-5),
                n_layer=d["n_layer"], n_head=n_head, n_kv_head=n_head, d_model=n_embd, d_ff=d.get("n_inner") or 4 * n_embd,
                tie_embeddings=d.get("tie_word_embeddings", True))  # fmt: skip
            return checked(DecoderConfig(**(_GPT2 | changes)))  # type: ignore[arg-type]
        if kind in ("llama", "qwen2", "qwen3"):
            n_head = d["num_attention_heads"]
            rope = d.get("rope_parameters") or {}  # transformers 5 moved rope_theta and rope_scaling here
            scaling = d.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
            if scaling and scaling.get("rope_type", scaling.get("type")) == "default":
                scaling = None
            if scaling:
                if scaling.get("rope_type", scaling.get("type")) != "llama3":
                    raise UserError(f"rope_scaling {scaling} is not supported", hint="supported: none, llama3")
                scaling = {k: float(scaling[k]) if k != "original_max_position_embeddings" else scaling[k] for k in _LLAMA31}
            bias = kind == "qwen2" or bool(d.get("attention_bias", False))
            own_width = d.get("head_dim") or (128 if kind == "qwen3" and "head_dim" not in d else d["hidden_size"] // n_head)
            return checked(DecoderConfig(
                vocab_size=d["vocab_size"], n_layer=d["num_hidden_layers"], n_head=n_head, n_kv_head=d.get("num_key_value_heads") or n_head,
                d_model=d["hidden_size"], head_dim=own_width, d_ff=d["intermediate_size"],
                max_positions=d["max_position_embeddings"], norm_eps=d.get("rms_norm_eps", 1e-6),
                rope_theta=float(rope.get("rope_theta") or d.get("rope_theta") or 10000.0), rope_scaling=scaling, attention_bias=bias,
                attention_out_bias=bias and kind != "qwen2", qk_norm=kind == "qwen3",
                tie_embeddings=bool(d.get("tie_word_embeddings", False))))  # fmt: skip
    except KeyError as error:
        raise UserError(f"config.json of model_type {kind!r} lacks {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"config.json of model_type {kind!r} has a value of the wrong kind: {error}") from None
    raise UserError(f"config.json says model_type {kind!r}", hint="freedive runs gpt2, llama, qwen2 and qwen3")


# The most a file may ask for. Weights are checked against the file's size besides; positions cost memory that no tensor vouches for.
_LIMITS = {"vocab_size": 1 << 24, "n_layer": 512, "n_head": 1024, "n_kv_head": 1024, "d_model": 1 << 18, "head_dim": 1024, "d_ff": 1 << 20,
           "max_positions": 1 << 20}  # fmt: skip


def checked(c: DecoderConfig) -> DecoderConfig:
    """`c` if its numbers are of the right kind and no larger than any model's; else UserError. For configurations that come from a file."""
    for name, most in _LIMITS.items():
        value = getattr(c, name)
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(f"the model's configuration has {name} = {value!r:.40}, not a whole number from 1 to {most:,}")
    for name in ("norm_eps", "rope_theta"):
        value = getattr(c, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
            raise UserError(f"the model's configuration has {name} = {value!r:.40}, not a positive number")
    if c.rope_scaling:
        s = c.rope_scaling
        if not all(isinstance(v, (int, float)) and 0 < v < 1e9 for v in s.values()) or s["high_freq_factor"] <= s["low_freq_factor"]:
            raise UserError(f"the model's configuration has the rope_scaling {s!r:.200}")
    return c
