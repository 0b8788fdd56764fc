"""Every kernel of csrc/ops.h callable from Python, NumPy in and out: for tests, benchmarks and the curious.

`call` runs a kernel on arrays you bring; the functions named like the ops allocate their outputs, filled with NaN so that a
forgotten element shows, and return them. Shapes and dtypes are checked against the schema of ops.h before a kernel sees them:
what does not fit is a ValueError. The last dimension of an array must be contiguous; the first may be strided.

All functions take `variant=` (a name of `variants(op)`, default the fastest), `threads=` and `device=`; those with products `compute=`. The first two change no
bit of the result unless the variant says so. Floats are float32, ids and lengths int32, unless stated. What activations store for products
(`f32|bf16` in ops.h) may be bfloat16: `call` takes it as it comes, outputs of the functions are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from freedive import _core

Array = np.ndarray
KV_BLOCK: int = _core.KV_BLOCK  # positions per block of the paged cache

DTYPES = {"f32": np.float32, "i32": np.int32, "i64": np.int64, "u64": np.uint64, "u8": np.uint8, "i8": np.int8, "bf16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Argument:
    """One argument of an op. Scalars have dtype "f" (double) or "i" (int64) and no dims"""

    name: str
    dtype: str  # "f32|bf16|i8" is any of them
    dims: tuple[str, ...] = ()  # one letter means one size within a call; "S1" is S + 1
    written: bool = False
    read: bool = True
    optional: bool = False


def schemas() -> dict[str, list[Argument]]:
    """The arguments of every op, in order, from the schemas of ops.h"""
    return {name: [parse(word) for word in text.split()] for name, text in _core.op_list()}


def parse(word: str) -> Argument:
    """ "dbias:f32[O]+?" -> Argument(name="dbias", dtype="f32", dims=("O",), written, read, optional)"""
    name, _, rest = word.partition(":")
    dtype, bracket, rest = rest.partition("[")
    if not bracket:
        return Argument(name, dtype.rstrip("?"), optional=dtype.endswith("?"))
    dims, _, marks = rest.partition("]")
    return Argument(name, dtype, tuple(dims.split(",")), "=" in marks or "+" in marks, "=" not in marks, "?" in marks)


def devices() -> list[str]:
    """The devices this build has and this machine can use: "cpu" always, "cuda" with a GPU, "cuda-emu" in a build for tests."""
    return [name for name in ("cpu", "cuda", "cuda-emu") if _core.device_error(name) is None]


def variants(name: str, device: str = "cpu") -> list[str]:
    """Registered variants of an op on a device, e.g. ["naive", "simd"]. ValueError for an unknown op, RuntimeError for a device that is not there."""
    return [variant for variant, _, _ in _core.op_variants(name, device)]


def ladder(name: str, device: str = "cpu") -> list[str]:
    """The same from the slowest rung, naive, to the last, which calls take by default. Raises as `variants`."""
    return [variant for variant, _, _ in sorted(_core.op_variants(name, device), key=lambda v: v[2])]


def tier() -> str:
    """Instruction set the kernels run on: "baseline", "avx2", ..."""
    return _core.cpu_tier()


def call(name: str, *, variant: str | None = None, threads: int = 1, device: str = "cpu", **arguments: Any) -> None:
    """Run one kernel on the given arrays; outputs are written in place. Absent optionals are None or left out. Of a device with memory of its own
    the arrays are copied there and back; RuntimeError if it is not there, or tells of a failure.

    Ops with products take compute="float32" (the default) or "bfloat16": operands may be rounded to it, sums are float32."""
    if "compute" in arguments:
        arguments["compute"] = compute_code(arguments["compute"])
    _core.op_call(name, variant, threads, arguments, device)


def resident(name: str, *, variant: str | None = None, threads: int = 1, device: str = "cpu", sets: int = 1, **arguments: Any) -> _core.ResidentOp:
    """An op whose arguments stay in the device's memory, to time it: `.seconds(calls)` is seconds a call by the device's own clock, without a copy between
    calls; `.read()` copies what the op wrote back to the arrays; `.variant` is the variant that was taken, `.workspace_bytes` its scratch memory.

    sets: so many copies of the arguments, taken in turns, so that a cache does not hold what the call before read. Arguments and errors as of `call`; on the CPU
    the arrays themselves are used. MemoryError if the device's memory does not suffice, RuntimeError if a kernel fails."""
    if "compute" in arguments:
        arguments["compute"] = compute_code(arguments["compute"])
    return _core.ResidentOp(name, variant, threads, arguments, device, sets)


def compute_code(compute: str | int | None) -> int:
    """The `compute` of ops.h: 0 for "float32", 1 for "bfloat16", 6 for "int8" (quantized_* only). ValueError for anything else."""
    codes = {"float32": 0, "bfloat16": 1, "int8": 6, 0: 0, 1: 1, 6: 6, None: 0}
    if compute not in codes:
        raise ValueError(f"compute is {compute!r}; it must be 'float32', 'bfloat16' or, with quantised weights, 'int8'")
    return codes[compute]


def fast_bf16(device: str = "cpu") -> bool:
    """Whether the device has instructions for products in bfloat16, and kernels that use them; without them they are slower than in float32."""
    return _core.fast_bf16(device)


def poisoned(*shape: int, dtype: Any = np.float32) -> Array:
    """An output nobody has written yet: NaN"""
    return np.full(shape, np.nan, dtype=dtype)


def zeros_like_rows(x: Array) -> Array:
    return np.zeros(x.shape, dtype=np.float32)


# ---- embedding ---------------------------------------------------------------------------------------------------


def bigram_ids(tokens: Array, cu_seqlens: Array, rows: int, prefixes: Array | None = None, seen: Array | None = None, past_lens: Array | None = None,
               block_table: Array | None = None, **how: Any) -> Array:  # fmt: skip
    """Which of `rows` rows of a table of pairs each token and the one before it have, see ops.h. tokens [N] -> int32 [N]; seen int32 [B,32] is updated in place"""
    out = np.full(len(tokens), -1, np.int32)
    cache: dict[str, Any] = {"seen": seen, "past_lens": past_lens, "block_table": block_table}
    call("bigram_ids", pairs=out, tokens=tokens, cu_seqlens=cu_seqlens, prefixes=prefixes, rows=rows, **cache, **how)
    return out


def embedding_forward(tokens: Array, wte: Array, positions: Array | None = None, wpe: Array | None = None, **how: Any) -> Array:
    """out[n] = wte[tokens[n]] (+ wpe[positions[n]]). tokens, positions [N], wte [V,C], wpe [T,C] -> [N,C]"""
    out = poisoned(len(tokens), wte.shape[1])
    call("embedding_forward", out=out, tokens=tokens, positions=positions, wte=wte, wpe=wpe, **how)
    return out


def embedding_backward(
    dout: Array, tokens: Array, dwte: Array, positions: Array | None = None, dwpe: Array | None = None, **how: Any
) -> None:
    """dwte[tokens[n]] += dout[n], dwpe[positions[n]] += dout[n]. dout [N,C]; dwte [V,C] and dwpe [T,C] are added to"""
    call("embedding_backward", dwte=dwte, dwpe=dwpe, dout=dout, tokens=tokens, positions=positions, **how)


# ---- norms -------------------------------------------------------------------------------------------------------


def with_heads(x: Array) -> Array:
    """[N,D] as [N,1,D]"""
    return x[:, None, :] if x.ndim == 2 else x


def rmsnorm_forward(x: Array, weight: Array, eps: float = 1e-6, **how: Any) -> tuple[Array, Array]:
    """out = x rstd weight, rstd = 1/sqrt(mean(x^2) + eps). x [N,H,D] or [N,D], weight [D] -> out like x, rstd [N,H] or [N]"""
    x3 = with_heads(x)
    out, rstd = poisoned(*x3.shape), poisoned(*x3.shape[:2])
    call("rmsnorm_forward", out=out, rstd=rstd, x=x3, weight=weight, eps=eps, **how)
    return out.reshape(x.shape), rstd.reshape(x.shape[:-1])


def rmsnorm_backward(
    dout: Array, x: Array, weight: Array, rstd: Array, *, dx: Array | None = None, dweight: Array | None = None, **how: Any
) -> tuple[Array, Array]:
    """dx = rstd (dout weight - x rstd^2 mean(dout weight x)); dweight = sum dout x rstd. dout, x [N,H,D] or [N,D], weight [D],
    rstd of the forward -> dx like x, dweight [D]. Given dx or dweight are added to."""
    into = poisoned(*x.shape) if dx is None else dx
    dweight = zeros_like_rows(weight) if dweight is None else dweight
    call(
        "rmsnorm_backward",
        dx=with_heads(into),
        dweight=dweight,
        dout=with_heads(dout),
        x=with_heads(x),
        weight=weight,
        rstd=rstd.reshape(len(x), -1),
        accumulate=dx is not None,
        **how,
    )
    return into, dweight


def layernorm_forward(
    x: Array, weight: Array, bias: Array | None = None, eps: float = 1e-5, **how: Any
) -> tuple[Array, Array, Array]:
    """out = (x - mean) rstd weight + bias. x [N,C], weight, bias [C] -> out [N,C], mean [N], rstd [N]"""
    out, mean, rstd = poisoned(*x.shape), poisoned(len(x)), poisoned(len(x))
    call("layernorm_forward", out=out, mean=mean, rstd=rstd, x=x, weight=weight, bias=bias, eps=eps, **how)
    return out, mean, rstd


def layernorm_backward(
    dout: Array,
    x: Array,
    weight: Array,
    mean: Array,
    rstd: Array,
    *,
    dx: Array | None = None,
    dweight: Array | None = None,
    dbias: Array | None = None,
    **how: Any,
) -> tuple[Array, Array, Array]:
    """dout, x [N,C], weight [C], mean and rstd [N] of the forward -> dx [N,C], dweight [C], dbias [C]. Given ones are added to."""
    into = poisoned(*x.shape) if dx is None else dx
    dweight = zeros_like_rows(weight) if dweight is None else dweight
    dbias = zeros_like_rows(weight) if dbias is None else dbias
    inputs: dict[str, Any] = {"dout": dout, "x": x, "weight": weight, "mean": mean, "rstd": rstd}
    call("layernorm_backward", dx=into, dweight=dweight, dbias=dbias, accumulate=dx is not None, **inputs, **how)
    return into, dweight, dbias


# ---- rotary position embedding, activations ------------------------------------------------------------------------


def rope(x: Array, cos: Array, sin: Array, positions: Array, inverse: bool = False, **how: Any) -> Array:
    """Turn each pair (x[i], x[i+D/2]) by its position's angle. x [N,H,D], cos, sin [P,D/2], positions [N] -> [N,H,D]"""
    out = poisoned(*x.shape)
    call("rope", out=out, x=x, cos=cos, sin=sin, positions=positions, inverse=inverse, **how)
    return out


def gelu_forward(x: Array, **how: Any) -> Array:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). x [N,F] -> [N,F]"""
    out = poisoned(*x.shape)
    call("gelu_forward", out=out, x=x, **how)
    return out


def gelu_backward(dout: Array, x: Array, **how: Any) -> Array:
    """dx = dout gelu'(x). [N,F] -> [N,F]"""
    dx = poisoned(*x.shape)
    call("gelu_backward", dx=dx, dout=dout, x=x, **how)
    return dx


def swiglu_forward(gate: Array, up: Array, **how: Any) -> Array:
    """silu(gate) up, silu(a) = a / (1 + exp(-a)). [N,F] -> [N,F]"""
    out = poisoned(*gate.shape)
    call("swiglu_forward", out=out, gate=gate, up=up, **how)
    return out


def swiglu_backward(dout: Array, gate: Array, up: Array, **how: Any) -> tuple[Array, Array]:
    """dout, gate, up [N,F] -> dgate = dout up silu'(gate), dup = dout silu(gate), [N,F]"""
    dgate, dup = poisoned(*gate.shape), poisoned(*gate.shape)
    call("swiglu_backward", dgate=dgate, dup=dup, dout=dout, gate=gate, up=up, **how)
    return dgate, dup


def cast(x: Array, dtype: Any = ml_dtypes.bfloat16, **how: Any) -> Array:
    """x [N,F], float32 or bfloat16, as `dtype`, one of these: to nearest, ties to even; denormals may become 0"""
    out = poisoned(*x.shape, dtype=dtype)
    call("cast", out=out, x=x, **how)
    return out


# ---- matmul --------------------------------------------------------------------------------------------------------


def matmul_pack(weight: Array, **how: Any) -> Array:
    """The weight [O,C] in the layout matmul_forward and the head read, for one `compute`: [P] words of 32 bits, as float32"""
    O, C = weight.shape
    packed = poisoned(_core.matmul_packed_size(O, C, compute_code(how.get("compute")), how.get("device", "cpu")))
    call("matmul_pack", packed=packed, weight=weight, **how)
    return packed


def matmul_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    packed: Array | None = None,
    out: Array | None = None,
    **how: Any,
) -> Array:
    """out = x weight^T + bias + residual. x [N,C], weight [O,C], bias [O], residual [N,O] -> [N,O]. A given out is added to."""
    into = poisoned(len(x), len(weight)) if out is None else out
    inputs: dict[str, Any] = {"x": x, "weight": weight, "packed": packed, "bias": bias, "residual": residual}
    call("matmul_forward", out=into, accumulate=out is not None, **inputs, **how)
    return into


def matmul_gelu_forward(x: Array, weight: Array, bias: Array | None = None, *, packed: Array | None = None, **how: Any) -> tuple[Array, Array]:
    """-> out = gelu(aux), aux = x weight^T + bias. x [N,C], weight [O,C], bias [O] -> [N,O] each"""
    out, aux = poisoned(len(x), len(weight)), poisoned(len(x), len(weight))
    call("matmul_gelu_forward", out=out, aux=aux, x=x, weight=weight, packed=packed, bias=bias, **how)
    return out, aux


def matmul_swiglu_forward(x: Array, weight: Array, bias: Array | None = None, *, packed: Array | None = None, **how: Any) -> tuple[Array, Array]:
    """-> out = silu(aux[:, :F]) aux[:, F:], aux = x weight^T + bias. x [N,C], weight [2F,C] (the gate's rows, then up's), bias [2F] -> [N,F], [N,2F]"""
    out, aux = poisoned(len(x), len(weight) // 2), poisoned(len(x), len(weight))
    call("matmul_swiglu_forward", out=out, aux=aux, x=x, weight=weight, packed=packed, bias=bias, **how)
    return out, aux


def matmul_backward_input(dout: Array, weight: Array, *, dx: Array | None = None, **how: Any) -> Array:
    """dx = dout weight. dout [N,O], weight [O,C] -> [N,C]. A given dx is added to."""
    into = poisoned(len(dout), weight.shape[1]) if dx is None else dx
    call("matmul_backward_input", dx=into, dout=dout, weight=weight, accumulate=dx is not None, **how)
    return into


def matmul_backward_weight(dout: Array, x: Array, dweight: Array, dbias: Array | None = None, **how: Any) -> None:
    """dweight += dout^T x, dbias += sum dout. dout [N,O], x [N,C]; dweight [O,C] and dbias [O] are added to"""
    call("matmul_backward_weight", dweight=dweight, dbias=dbias, dout=dout, x=x, **how)


# ---- attention -----------------------------------------------------------------------------------------------------


def attention_forward(
    q: Array, k: Array, v: Array, cu_seqlens: Array, scale: float | None = None, **how: Any
) -> tuple[Array, Array]:
    """Causal attention inside each sequence. q [N,H,D], k, v [N,G,D]; scale 1/sqrt(D) by default -> out [N,H,D], lse [N,H]"""
    out, lse = poisoned(*q.shape), poisoned(*q.shape[:2])
    scale = q.shape[2] ** -0.5 if scale is None else scale
    call("attention_forward", out=out, lse=lse, q=q, k=k, v=v, cu_seqlens=cu_seqlens, scale=scale, **how)
    return out, lse


def attention_backward(
    dout: Array, out: Array, lse: Array, q: Array, k: Array, v: Array, cu_seqlens: Array, scale: float | None = None, **how: Any
) -> tuple[Array, Array, Array]:
    """dout [N,H,D]; out [N,H,D] and lse [N,H] of the forward, and its q [N,H,D], k, v [N,G,D] -> dq [N,H,D], dk, dv [N,G,D]"""
    dq, dk, dv = poisoned(*q.shape), poisoned(*k.shape), poisoned(*v.shape)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    inputs: dict[str, Any] = {"dout": dout, "out": out, "lse": lse, "q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens}
    call("attention_backward", dq=dq, dk=dk, dv=dv, scale=scale, **inputs, **how)
    return dq, dk, dv


def new_cache(blocks: int, G: int, D: int, dtype: str = "float32") -> tuple[Array, ...]:
    """An empty paged cache, all NaN: k_cache [blocks,G,D/P,32P], v_cache [blocks,G,32/P,DP] with P = 1, 2 or 4 numbers in a word of 32 bits for
    float32, bfloat16 and int8 (see ops.h); for int8 also k_scale and v_scale [blocks,G,32]"""
    code = cache_code(dtype)
    P, numbers = {0: (1, np.float32), 1: (2, ml_dtypes.bfloat16), 6: (4, np.int8)}[code]
    shapes = (blocks, G, -(-D // P), KV_BLOCK * P), (blocks, G, KV_BLOCK // P, D * P)
    if code == 6:
        return *(np.full(shape, -128, np.int8) for shape in shapes), poisoned(blocks, G, KV_BLOCK), poisoned(blocks, G, KV_BLOCK)
    return tuple(poisoned(*shape, dtype=numbers) for shape in shapes)


def cache_code(dtype: str) -> int:
    """The fd_dtype of ops.h of a cache of "float32", "bfloat16" or "int8". ValueError for anything else."""
    codes = {"float32": 0, "bfloat16": 1, "int8": 6}
    if dtype not in codes:
        raise ValueError(f"a cache of {dtype!r}; it must be 'float32', 'bfloat16' or 'int8'")
    return codes[dtype]


def kv_cache_write(
    k_cache: Array,
    v_cache: Array,
    k: Array,
    v: Array,
    cu_seqlens: Array,
    past_lens: Array,
    block_table: Array,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    **how: Any,
) -> None:
    """Append k, v [N,G,D] of S sequences to the cache (see new_cache): position p of sequence s goes to block block_table[s, p // 32],
    slot p % 32. cu_seqlens [S+1] of the new rows, past_lens [S] rows cached before, block_table [S,M]. The scales are an int8 cache's"""
    where: dict[str, Any] = {"cu_seqlens": cu_seqlens, "past_lens": past_lens, "block_table": block_table}
    call("kv_cache_write", k_cache=k_cache, v_cache=v_cache, k_scale=k_scale, v_scale=v_scale, k=k, v=v, **where, **how)


def attention_cached(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    cu_seqlens: Array,
    past_lens: Array,
    block_table: Array,
    scale: float | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    **how: Any,
) -> Array:
    """attention_forward of the newest rows q [N,H,D], keys and values (theirs included) read from the cache -> [N,H,D].
    The other arguments as of kv_cache_write, which comes first"""
    out = poisoned(*q.shape)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    inputs: dict[str, Any] = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "cu_seqlens": cu_seqlens, "past_lens": past_lens}
    inputs |= {"k_scale": k_scale, "v_scale": v_scale}
    call("attention_cached", out=out, block_table=block_table, scale=scale, **inputs, **how)
    return out


# ---- language-model head: see head_inputs for what all of them take ------------------------------------------------


def head_inputs(
    x: Array, weight: Array, targets: Array, temperature: float, vocab_mask: Array | None, packed: Array | None
) -> dict:
    """x [N,C], weight [V,C], targets [N] or [N,K] (a row beginning with -1 is skipped), vocab_mask uint8 [V], packed [P]"""
    T = np.array([temperature], dtype=np.float32)
    targets = targets[:, None] if targets.ndim == 1 else targets
    return {"x": x, "weight": weight, "packed": packed, "targets": targets, "temperature": T, "vocab_mask": vocab_mask}


def head_forward(
    x: Array,
    weight: Array,
    targets: Array,
    temperature: float = 1.0,
    vocab_mask: Array | None = None,
    packed: Array | None = None,
    **how: Any,
) -> tuple[Array, Array, Array]:
    """z = weight x / T over unmasked ids; logprobs = z[targets] - lse -> logprobs like targets, entropy [N], lse [N], nats.
    x [N,C], weight [V,C], targets [N] or [N,K], -1 = none (its outputs are 0)"""
    inputs = head_inputs(x, weight, targets, temperature, vocab_mask, packed)
    logprobs, entropy, lse = poisoned(*inputs["targets"].shape), poisoned(len(x)), poisoned(len(x))
    call("head_forward", logprobs=logprobs, entropy=entropy, lse=lse, **inputs, **how)
    return logprobs.reshape(targets.shape), entropy, lse


def head_backward(
    x: Array,
    weight: Array,
    targets: Array,
    lse: Array,
    entropy: Array,
    dlogprobs: Array | None = None,
    dentropy: Array | None = None,
    dlse: Array | None = None,
    temperature: float = 1.0,
    vocab_mask: Array | None = None,
    packed: Array | None = None,
    *,
    dweight: Array | None = None,
    **how: Any,
) -> tuple[Array, Array]:
    """Derivatives by logprobs (like targets), entropy and lse [N] -> dx [N,C], dweight [V,C]. A given dweight is added to."""
    inputs = head_inputs(x, weight, targets, temperature, vocab_mask, packed)
    dx = poisoned(*x.shape)
    dweight = zeros_like_rows(weight) if dweight is None else dweight
    dlogprobs = None if dlogprobs is None else dlogprobs.reshape(inputs["targets"].shape)
    derivatives: dict[str, Any] = {"lse": lse, "entropy": entropy, "dlogprobs": dlogprobs, "dentropy": dentropy, "dlse": dlse}
    call("head_backward", dx=dx, dweight=dweight, **inputs, **derivatives, **how)
    return dx, dweight


def head_forward_backward(
    x: Array,
    weight: Array,
    targets: Array,
    dlogprobs: Array,
    temperature: float = 1.0,
    vocab_mask: Array | None = None,
    packed: Array | None = None,
    *,
    dweight: Array | None = None,
    **how: Any,
) -> tuple[Array, Array, Array, Array, Array]:
    """head_forward and head_backward in one pass over the logits; dlogprobs like targets, known beforehand -> logprobs like targets,
    entropy, lse [N], dx [N,C], dweight [V,C]. A given dweight is added to."""
    inputs = head_inputs(x, weight, targets, temperature, vocab_mask, packed)
    shape = inputs["targets"].shape
    logprobs, entropy, lse, dx = poisoned(*shape), poisoned(len(x)), poisoned(len(x)), poisoned(*x.shape)
    dweight = zeros_like_rows(weight) if dweight is None else dweight
    outputs: dict[str, Any] = {"logprobs": logprobs, "entropy": entropy, "lse": lse, "dx": dx, "dweight": dweight}
    call("head_forward_backward", dlogprobs=dlogprobs.reshape(shape), **outputs, **inputs, **how)
    return logprobs.reshape(targets.shape), entropy, lse, dx, dweight


def head_sample(
    x: Array,
    weight: Array,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    seeds: Any = 0,
    counters: Any = 0,
    vocab_mask: Array | None = None,
    packed: Array | None = None,
    *,
    op: str = "head_sample",
    packed_as: dict[str, int] | None = None,
    **how: Any,
) -> tuple[Array, Array]:
    """Draw a token per row of x [S,C] after top_k, min_p and top_p; temperature 0 takes the largest logit. Parameters are [S]
    or one for all -> tokens int32 [S], logprobs [S] at the temperature, before truncation (at 1 for temperature 0)"""
    S = len(x)
    tokens, logprobs = np.full(S, -1, dtype=np.int32), poisoned(S)
    given: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "min_p": min_p}
    per_row: dict[str, Any] = {name: np.array(np.broadcast_to(value, S), dtype=np.float32) for name, value in given.items()}
    per_row["top_k"] = np.array(np.broadcast_to(top_k, S), dtype=np.int32)
    per_row |= {
        n: np.array(np.broadcast_to(value, S), dtype=np.uint64) for n, value in (("seeds", seeds), ("counters", counters))
    }
    held: dict[str, Any] = {"packed": packed} if packed_as is None else dict(packed_as)
    call(op, tokens=tokens, logprobs=logprobs, x=x, weight=weight, vocab_mask=vocab_mask, **held, **per_row, **how)
    return tokens, logprobs


def decode_advance(sampled: Array, logprobs: Array, cu_seqlens: Array, past_lens: Array, remaining: Array, tokens: Array, positions: Array,
                   temperature: Array, top_k: Array, top_p: Array, min_p: Array, seeds: Array, counters: Array, stop_ids: Array | None = None, **how: Any) -> tuple[Array, Array]:  # fmt: skip
    """Between two steps of decoding, see ops.h: what was sampled [N] after the row of each sequence that has one -> tokens int32 [S], -1 where there was
    none, log-probs [S]. The other arguments are updated in place: how long each sequence is and may yet be [S], and the next step's rows [N]"""
    S = len(past_lens)
    out_tokens, out_logprobs = np.full(S, -1, np.int32), poisoned(S)
    sequences: dict[str, Any] = {"stop_ids": stop_ids, "cu_seqlens": cu_seqlens, "past_lens": past_lens, "remaining": remaining}
    rows: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seeds": seeds, "counters": counters}
    call("decode_advance", out_tokens=out_tokens, out_logprobs=out_logprobs, sampled=sampled, logprobs=logprobs, tokens=tokens, positions=positions, **sequences, **rows, **how)
    return out_tokens, out_logprobs


# ---- weights of 16, 8 and 4 bits ------------------------------------------------------------------------------------


def quantized_size(O: int, C: int, type: int, device: str = "cpu") -> int:
    """Bytes of a packed weight [O,C] of a ggml type; 0 if weights of this type or width are not held packed."""
    return _core.quantized_size(O, C, type, device)


def quantized_row(C: int, type: int) -> int:
    """Bytes of a row of C numbers in the ggml type, as files have it; 0 as for `quantized_size`."""
    return _core.quantized_row(C, type)


def quantized_pack(rows: Array, type: int, C: int, **how: Any) -> Array:
    """The rows of a file, uint8 [O, bytes], in the order kernels read them: uint8 [quantized_size(O, C, type)]"""
    packed = np.zeros(quantized_size(len(rows), C, type, how.get("device", "cpu")), np.uint8)
    call("quantized_pack", packed=packed, rows=rows, type=type, **how)
    return packed


def quantized_matmul(x: Array, weight: Array, O: int, type: int, bias: Array | None = None, residual: Array | None = None, **how: Any) -> Array:
    """x W^T + bias + residual with a packed weight. x [N,C], bias [O], residual [N,O] -> [N,O]"""
    out = poisoned(len(x), O)
    call("quantized_matmul", out=out, x=x, weight=weight, bias=bias, residual=residual, type=type, **how)
    return out


def quantized_matmul_backward_input(dout: Array, weight: Array, C: int, type: int, dx: Array | None = None, **how: Any) -> Array:
    """dout W with a packed weight [O,C], added to dx if that is given. dout [N,O] -> [N,C]"""
    accumulate, dx = dx is not None, poisoned(len(dout), C) if dx is None else dx
    call("quantized_matmul_backward_input", dx=dx, dout=dout, weight=weight, accumulate=int(accumulate), type=type, **how)
    return dx


def quantized_embedding(tokens: Array, weight: Array, vocab: int, C: int, type: int, positions: Array | None = None, wpe: Array | None = None,
                        **how: Any) -> Array:  # fmt: skip
    """Rows of a packed table of `vocab` rows (+ wpe[positions]). tokens, positions [N], wpe [T,C] -> [N,C]"""
    out = poisoned(len(tokens), C)
    call("quantized_embedding", out=out, tokens=tokens, positions=positions, weight=weight, wpe=wpe, vocab=vocab, type=type, **how)
    return out


def quantized_head_forward(
    x: Array, weight: Array, vocab: int, type: int, targets: Array, temperature: float = 1.0, vocab_mask: Array | None = None, **how: Any
) -> tuple[Array, Array, Array]:
    """head_forward with a packed weight [vocab,C] -> logprobs like targets, entropy [N], lse [N]"""
    inputs = head_inputs(x, weight, targets, temperature, vocab_mask, None)
    del inputs["packed"]
    logprobs, entropy, lse = poisoned(*inputs["targets"].shape), poisoned(len(x)), poisoned(len(x))
    call("quantized_head_forward", logprobs=logprobs, entropy=entropy, lse=lse, vocab=vocab, type=type, **inputs, **how)
    return logprobs.reshape(targets.shape), entropy, lse


def quantized_head_backward(x: Array, weight: Array, vocab: int, type: int, targets: Array, lse: Array, entropy: Array, dlogprobs: Array | None = None,
                            dentropy: Array | None = None, dlse: Array | None = None, temperature: float = 1.0, vocab_mask: Array | None = None,
                            **how: Any) -> Array:  # fmt: skip
    """head_backward with a packed weight [vocab,C], which has no gradient. lse, entropy [N] as of the forward -> dx [N,C]"""
    inputs = head_inputs(x, weight, targets, temperature, vocab_mask, None)
    del inputs["packed"]
    dx = poisoned(*x.shape)
    shaped = None if dlogprobs is None else dlogprobs.reshape(inputs["targets"].shape)
    call("quantized_head_backward", dx=dx, lse=lse, entropy=entropy, dlogprobs=shaped, dentropy=dentropy, dlse=dlse, vocab=vocab, type=type, **inputs, **how)
    return dx


def quantized_head_forward_backward(x: Array, weight: Array, vocab: int, type: int, targets: Array, dlogprobs: Array, temperature: float = 1.0,
                                    vocab_mask: Array | None = None, **how: Any) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """head_forward_backward with a packed weight [vocab,C] -> logprobs like targets, entropy [N], lse [N], dx [N,C]"""
    inputs = head_inputs(x, weight, targets, temperature, vocab_mask, None)
    del inputs["packed"]
    logprobs, entropy, lse, dx = poisoned(*inputs["targets"].shape), poisoned(len(x)), poisoned(len(x)), poisoned(*x.shape)
    call("quantized_head_forward_backward", logprobs=logprobs, entropy=entropy, lse=lse, dx=dx, dlogprobs=dlogprobs.reshape(inputs["targets"].shape),
         vocab=vocab, type=type, **inputs, **how)  # fmt: skip
    return logprobs.reshape(targets.shape), entropy, lse, dx


def quantized_head_sample(x: Array, weight: Array, vocab: int, type: int, **sampling: Any) -> tuple[Array, Array]:
    """head_sample with a packed weight [vocab,C]; `sampling` as there -> tokens int32 [S], logprobs [S]"""
    return head_sample(x, weight, op="quantized_head_sample", packed_as={"vocab": vocab, "type": type}, **sampling)


# ---- optimizer -----------------------------------------------------------------------------------------------------


def global_norm(x: Array, **how: Any) -> Array:
    """sqrt(sum x^2), summed in double. x [P] -> [1]"""
    out = poisoned(1)
    call("global_norm", out=out, x=x, **how)
    return out


def adamw(param: Array, grad: Array, m: Array, v: Array, norm: Array, hyper: Array, **how: Any) -> None:
    """One AdamW step of param, m, v [P] in place. norm [1]; hyper [8] = lr, beta1, beta2, eps, weight_decay, max_norm,
    1 - beta1^t, 1 - beta2^t. A non-finite norm changes nothing."""
    call("adamw", param=param, grad=grad, m=m, v=v, norm=norm, hyper=hyper, **how)


def muon_momentum(m: Array, grad: Array, norm: Array, hyper: Array, **how: Any) -> Array:
    """Muon's momentum, in place, and the direction of its step. m, grad [P], norm float32 [1] (of the whole gradient), hyper float32 [5] =
    lr, momentum, nesterov (0 or 1), weight_decay, max_norm -> out [P]"""
    out = poisoned(len(m))
    call("muon_momentum", out=out, m=m, grad=grad, norm=norm, hyper=hyper, **how)
    return out


def muon_update(param: Array, x: Array, norm: Array, hyper: Array, scale: float, **how: Any) -> None:
    """param -= lr (scale x + weight_decay param), in place, unless norm is not finite. param, x [P]; hyper as for `muon_momentum`"""
    call("muon_update", param=param, x=x, norm=norm, hyper=hyper, scale=scale, **how)


def normalize(x: Array, norm: Array, eps: float = 1e-7, **how: Any) -> Array:
    """x / max(norm, eps). x [P], norm float32 [1] -> [P]"""
    out = poisoned(len(x))
    call("normalize", out=out, x=x, norm=norm, eps=eps, **how)
    return out


def linear_combination(x: Array, alpha: float, y: Array | None = None, beta: float = 0.0, **how: Any) -> Array:
    """alpha x + beta y. x, y [P] -> [P]"""
    out = poisoned(len(x))
    call("linear_combination", out=out, x=x, y=y, alpha=alpha, beta=beta, **how)
    return out
