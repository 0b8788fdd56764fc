"""Every op of csrc/ops.h in NumPy float64: forward and backward, same names, same arguments.

Functions are pure: they return what the kernel would write. Where a kernel accumulates ("+=") the function returns the
increment, and the caller adds it. Shapes: N tokens, C channels, H query heads, G key-value heads, D head size,
V vocabulary, K candidate ids a token, S sequences. The one idea: read the forward, then differentiate it line by line.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

KV_BLOCK = 32  # positions per block of the paged cache: FD_KV_BLOCK

Array = np.ndarray


def f64(x: ArrayLike) -> Array:
    return np.asarray(x, dtype=np.float64)


# ---- embedding -------------------------------------------------------------------------------------------------


def bigram_row(before: int, token: int, rows: int) -> int:
    """csrc/core/bigram.h: the row that two tokens in a row have in a table of pairs; 0 where there is none before (-1)"""
    if before < 0:
        return 0
    h = ((before * 0x9E3779B1) ^ (token * 0x85EBCA77)) & 0xFFFFFFFF
    h ^= h >> 15
    h = h * 0x2C1B3C6D & 0xFFFFFFFF
    h ^= h >> 12
    return 1 + h % (rows - 1)


def bigram_ids(tokens: Array, cu_seqlens: Array, rows: int, prefixes: Array | None = None, seen: Array | None = None, past_lens: Array | None = None,
               block_table: Array | None = None) -> tuple[Array, Array | None]:  # fmt: skip
    """ops.h: the row of each token and the one before it -> [N], and with a cache its ids [B, 32] with the batch's noted"""
    out, seen = np.zeros(len(tokens), int), None if seen is None else seen.copy()
    sequences = list(enumerate(zip(cu_seqlens[:-1], cu_seqlens[1:])))

    def place(s: int, position: int) -> tuple[int, int]:
        assert block_table is not None
        return block_table[s, position // 32], position % 32

    if seen is not None and past_lens is not None:
        for s, (begin, end) in sequences:
            for n in range(begin, end):
                seen[place(s, past_lens[s] + n - begin)] = tokens[n]
    for s, (begin, end) in sequences:
        before = -1
        if seen is not None and past_lens is not None and past_lens[s] and end > begin:
            before = seen[place(s, past_lens[s] - 1)]
        if prefixes is not None and prefixes[s, 1]:
            before = tokens[cu_seqlens[prefixes[s, 0]] + prefixes[s, 1] - 1]
        for n in range(begin, end):
            out[n] = bigram_row(int(tokens[n - 1] if n > begin else before), int(tokens[n]), rows)
    return out, seen


def embedding_forward(tokens: Array, positions: Array | None, wte: Array, wpe: Array | None = None) -> Array:
    """out[n] = wte[tokens[n]] (+ wpe[positions[n]])  -> [N, C]"""
    out = f64(wte)[tokens]
    return out if wpe is None else out + f64(wpe)[positions]


def embedding_backward(
    dout: Array, tokens: Array, positions: Array | None, V: int, T: int | None = None
) -> tuple[Array, Array | None]:
    """A row that was read n times receives n gradients. -> dwte [V, C], dwpe [T, C] or None"""
    dout = f64(dout)
    dwte = np.zeros((V, dout.shape[1]))
    np.add.at(dwte, tokens, dout)
    if T is None or positions is None:
        return dwte, None
    dwpe = np.zeros((T, dout.shape[1]))
    np.add.at(dwpe, positions, dout)
    return dwte, dwpe


# ---- norms, over the last dimension ------------------------------------------------------------------------------


def rmsnorm_forward(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """out = x * rstd * weight, rstd = 1/sqrt(mean(x^2) + eps). x [..., D] -> out [..., D], rstd [...]"""
    x = f64(x)
    rstd = 1 / np.sqrt((x**2).mean(-1) + eps)
    return x * rstd[..., None] * f64(weight), rstd


def rmsnorm_backward(dout: Array, x: Array, weight: Array, rstd: Array) -> tuple[Array, Array]:
    """d rstd / dx = -rstd^3 x / D, hence the second term. -> dx, dweight"""
    dout, x, rstd = f64(dout), f64(x), f64(rstd)[..., None]
    dnormed = dout * f64(weight)
    dx = rstd * (dnormed - x * rstd**2 * (dnormed * x).mean(-1, keepdims=True))
    dweight = (dout * x * rstd).reshape(-1, x.shape[-1]).sum(0)
    return dx, dweight


def layernorm_forward(x: Array, weight: Array, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """out = (x - mean) * rstd * weight + bias, rstd = 1/sqrt(var + eps). -> out, mean, rstd"""
    x = f64(x)
    mean = x.mean(-1)
    rstd = 1 / np.sqrt(x.var(-1) + eps)
    out = (x - mean[..., None]) * rstd[..., None] * f64(weight)
    return (out if bias is None else out + f64(bias)), mean, rstd


def layernorm_backward(dout: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """Subtracting the mean and dividing by the deviation each remove one direction from the gradient. -> dx, dweight, dbias"""
    dout, rstd = f64(dout), f64(rstd)[..., None]
    normed = (f64(x) - f64(mean)[..., None]) * rstd
    dnormed = dout * f64(weight)
    dx = rstd * (dnormed - dnormed.mean(-1, keepdims=True) - normed * (dnormed * normed).mean(-1, keepdims=True))
    C = normed.shape[-1]
    return dx, (dout * normed).reshape(-1, C).sum(0), dout.reshape(-1, C).sum(0)


# ---- rotary position embedding -----------------------------------------------------------------------------------


def rope(x: Array, cos: Array, sin: Array, positions: Array, inverse: bool = False) -> Array:
    """Turn the pair (x[i], x[i + D/2]) by the angle of (position, i). inverse turns back: the backward pass. x [N, H, D]"""
    x = f64(x)
    R = x.shape[-1] // 2
    c, s = f64(cos)[positions][:, None, :], f64(sin)[positions][:, None, :]  # [N, 1, R]
    if inverse:
        s = -s
    a, b = x[..., :R], x[..., R:]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


# ---- activations -------------------------------------------------------------------------------------------------

GELU_SCALE = np.sqrt(2 / np.pi)


def cast(x: Array) -> Array:
    """out = x, before it is rounded to what out holds"""
    return f64(x)


def gelu_forward(x: Array) -> Array:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): the tanh form, GPT-2's"""
    x = f64(x)
    return 0.5 * x * (1 + np.tanh(GELU_SCALE * (x + 0.044715 * x**3)))


def gelu_backward(dout: Array, x: Array) -> Array:
    x = f64(x)
    tanh = np.tanh(GELU_SCALE * (x + 0.044715 * x**3))
    dinner = GELU_SCALE * (1 + 3 * 0.044715 * x**2)
    return f64(dout) * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * dinner)


def sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def swiglu_forward(gate: Array, up: Array) -> Array:
    """silu(gate) * up, silu(a) = a sigmoid(a)"""
    gate = f64(gate)
    return gate * sigmoid(gate) * f64(up)


def swiglu_backward(dout: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """-> dgate, dup"""
    dout, gate, up = f64(dout), f64(gate), f64(up)
    s = sigmoid(gate)
    return dout * up * s * (1 + gate * (1 - s)), dout * gate * s


# ---- matmul: the three layouts of training -----------------------------------------------------------------------


def matmul_forward(x: Array, weight: Array, bias: Array | None = None, residual: Array | None = None) -> Array:
    """out[n, o] = sum_c x[n, c] weight[o, c] + bias[o] + residual[n, o]"""
    out = f64(x) @ f64(weight).T
    if bias is not None:
        out = out + f64(bias)
    return out if residual is None else out + f64(residual)


def matmul_gelu_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Array]:
    """-> out = gelu(aux), aux = x weight^T + bias"""
    aux = matmul_forward(x, weight, bias)
    return gelu_forward(aux), aux


def matmul_swiglu_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Array]:
    """-> out = silu(aux[:, :F]) aux[:, F:] [N, F], aux = x weight^T + bias [N, 2 F]"""
    aux = matmul_forward(x, weight, bias)
    return swiglu_forward(*np.split(aux, 2, axis=1)), aux


def rounded_int8(x: Array) -> Array:
    """What products in int8 take of x [N, C]: in blocks of 32, d * round(x / d), d = max|x| / 127 (ggml's Q8_0, d kept in float32), 0 below 1e-30. The
    rounding is decided in float32, as kernels do it."""
    blocks = np.asarray(x, np.float32).reshape(len(x), x.shape[1] // 32, 32)
    most = np.abs(blocks).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most >= np.float32(1e-30))
    return (np.rint(blocks * inverse) * f64(np.where(inverse > 0, most / np.float32(127), np.float32(0)))).reshape(x.shape)


def matmul_backward_input(dout: Array, weight: Array) -> Array:
    """dx[n, c] = sum_o dout[n, o] weight[o, c]"""
    return f64(dout) @ f64(weight)


def matmul_backward_weight(dout: Array, x: Array) -> tuple[Array, Array]:
    """dweight[o, c] = sum_n dout[n, o] x[n, c]; dbias[o] = sum_n dout[n, o]"""
    return f64(dout).T @ f64(x), f64(dout).sum(0)


# ---- attention ---------------------------------------------------------------------------------------------------


def causal_scores(q: Array, k: Array, scale: float) -> Array:
    """scale q.k, with -inf where a query would see the future. The last query sees every key. q [n, D], k [m, D] -> [n, m]"""
    n, m = len(q), len(k)
    scores = scale * q @ k.T
    query_position = np.arange(n)[:, None] + (m - n)
    return np.where(np.arange(m)[None, :] <= query_position, scores, -np.inf)


def log_sum_exp(x: Array) -> Array:
    top = x.max(-1, keepdims=True)
    return (top + np.log(np.exp(x - top).sum(-1, keepdims=True)))[..., 0]


def attention_forward(q: Array, k: Array, v: Array, cu_seqlens: Array, scale: float) -> tuple[Array, Array]:
    """Causal attention inside each sequence; head h reads key-value head h // (H/G). -> out [N, H, D], lse [N, H]"""
    q, k, v = f64(q), f64(k), f64(v)
    (N, H, _), G = q.shape, k.shape[1]
    out, lse = np.zeros_like(q), np.zeros((N, H))
    for begin, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        if begin == end:
            continue
        for h in range(H):
            g, rows = h // (H // G), slice(begin, end)
            scores = causal_scores(q[rows, h], k[rows, g], scale)
            lse[rows, h] = log_sum_exp(scores)
            p = np.exp(scores - lse[rows, h, None])
            out[rows, h] = p @ v[rows, g]
    return out, lse


def attention_backward(
    dout: Array, out: Array, lse: Array, q: Array, k: Array, v: Array, cu_seqlens: Array, scale: float
) -> tuple[Array, Array, Array]:
    """With p = softmax(scores): ds = p (dp - sum p dp), and sum p dp = dout.out. -> dq, dk, dv"""
    dout, out, lse, q, k, v = f64(dout), f64(out), f64(lse), f64(q), f64(k), f64(v)
    H, G = q.shape[1], k.shape[1]
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for begin, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        for h in range(H if begin < end else 0):
            g, rows = h // (H // G), slice(begin, end)
            p = np.exp(causal_scores(q[rows, h], k[rows, g], scale) - lse[rows, h, None])
            dp = dout[rows, h] @ v[rows, g].T
            ds = p * (dp - (dout[rows, h] * out[rows, h]).sum(-1, keepdims=True))
            dq[rows, h] = scale * ds @ k[rows, g]
            dk[rows, g] += scale * ds.T @ q[rows, h]
            dv[rows, g] += p.T @ dout[rows, h]
    return dq, dk, dv


def numbers_per_word(cache: Array) -> int:
    """How many numbers of the cache's dtype lie in 32 bits; a float64 cache counts as float32"""
    return {1: 4, 2: 2}.get(cache.dtype.itemsize, 1)


def mixed(x: Array) -> Array:
    """H x on the last dimension: the unnormalised Walsh-Hadamard matrix of the largest power of two B in D, on each B neighbours. H H = B"""
    B, half = x.shape[-1] & -x.shape[-1], 1
    while half < B:
        pairs = x.reshape(*x.shape[:-1], -1, 2, half)
        with np.errstate(invalid="ignore", over="ignore"):
            x = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2).reshape(x.shape)
        half *= 2
    return x


def quantized(x: Array) -> tuple[Array, Array]:
    """mixed(x) [.., D] = scale q: int8 q and float32 scale [..] = max |mixed(x)| / 127, in float32 as the kernels do. Below 1e-30 all is 0, a
    number that is not finite makes the scale NaN"""
    x = mixed(np.asarray(x, np.float32))
    largest = np.abs(x).max(-1)
    good = np.isfinite(largest) & (largest >= np.float32(1e-30))
    inverse = np.where(good, np.float32(127) / np.where(good, largest, np.float32(1)), np.float32(0))
    q = np.rint(np.where(np.isfinite(x), x, np.float32(0)) * inverse[..., None]).astype(np.int8)
    return q, np.where(np.isfinite(largest), np.where(good, largest / np.float32(127), np.float32(0)), np.float32(np.nan))


def kv_cache_write(
    k_cache: Array, v_cache: Array, k: Array, v: Array, cu_seqlens: Array, past_lens: Array, block_table: Array,
    k_scale: Array | None = None, v_scale: Array | None = None,
) -> tuple[Array, ...]:  # fmt: skip
    """Position p of sequence s lives in block block_table[s, p // 32], slot p % 32, in words of P numbers: k_cache [B,G,D/P,32P],
    v_cache [B,G,32/P,DP], k_scale and v_scale [B,G,32] of int8. -> the arrays given"""
    caches = [np.array(x) for x in (k_cache, v_cache, k_scale, v_scale) if x is not None]
    (B, G), D, P = k_cache.shape[:2], k.shape[2], numbers_per_word(k_cache)
    keys = caches[0].reshape(B, G, -1, KV_BLOCK, P)  # [.., word of d, slot, d % P]
    values = caches[1].reshape(B, G, KV_BLOCK // P, D, P)  # [.., word of slots, d, slot % P]
    for s in range(len(past_lens)):
        for i, n in enumerate(range(cu_seqlens[s], cu_seqlens[s + 1])):
            position = past_lens[s] + i
            block, slot = block_table[s, position // KV_BLOCK], position % KV_BLOCK
            key, value = k[n], v[n]
            if P == 4:
                key, caches[2][block, :, slot] = quantized(key)
                value, caches[3][block, :, slot] = quantized(value)
            if P == 2 and slot % 2 == 0:
                values[block, :, slot // 2] = 0
            padded = np.zeros((G, keys.shape[2] * P), keys.dtype)
            padded[:, :D] = key
            keys[block, :, :, slot] = padded.reshape(G, -1, P)
            values[block, :, slot // P, :, slot % P] = value
    return tuple(caches)


def cached_numbers(k_cache: Array, v_cache: Array, k_scale: Array | None, v_scale: Array | None) -> tuple[Array, Array]:
    """What a cache stands for: k, v float64 [B, 32, G, D]"""
    (B, G), P = k_cache.shape[:2], numbers_per_word(k_cache)
    D = v_cache.shape[3] // P
    k = f64(k_cache).reshape(B, G, -1, KV_BLOCK, P).transpose(0, 3, 1, 2, 4).reshape(B, KV_BLOCK, G, -1)[..., :D]
    v = f64(v_cache).reshape(B, G, -1, D, P).transpose(0, 2, 4, 1, 3).reshape(B, KV_BLOCK, G, D)
    if k_scale is not None and v_scale is not None:
        k, v = (mixed(x * f64(s).transpose(0, 2, 1)[..., None]) / (D & -D) for x, s in ((k, k_scale), (v, v_scale)))
    return k, v


def attention_cached(
    q: Array, k_cache: Array, v_cache: Array, cu_seqlens: Array, past_lens: Array, block_table: Array, scale: float,
    k_scale: Array | None = None, v_scale: Array | None = None,
) -> Array:  # fmt: skip
    """attention_forward of the last rows of each sequence, keys and values gathered from the cache. -> out [N, H, D]"""
    keys, values = cached_numbers(k_cache, v_cache, k_scale, v_scale)
    q = f64(q)
    H, G = q.shape[1], k_cache.shape[1]
    out = np.zeros_like(q)
    for s in range(len(past_lens)):
        rows = slice(cu_seqlens[s], cu_seqlens[s + 1])
        total = past_lens[s] + cu_seqlens[s + 1] - cu_seqlens[s]
        if rows.start == rows.stop:
            continue
        blocks = block_table[s, : -(-total // KV_BLOCK)]
        k, v = (np.concatenate(x[blocks])[:total] for x in (keys, values))  # [total, G, D]
        for h in range(H):
            scores = causal_scores(q[rows, h], k[:, h // (H // G)], scale)
            out[rows, h] = np.exp(scores - log_sum_exp(scores)[:, None]) @ v[:, h // (H // G)]
    return out


# ---- language-model head -----------------------------------------------------------------------------------------


def head_log_softmax(x: Array, weight: Array, temperature: float, vocab_mask: Array | None = None) -> tuple[Array, Array]:
    """log p = z - lse with z = weight x / T, and -inf for ids outside the mask. -> log p [N, V], lse [N]"""
    z = f64(x) @ f64(weight).T / float(temperature)
    if vocab_mask is not None:
        z = np.where(np.asarray(vocab_mask) != 0, z, -np.inf)
    lse = log_sum_exp(z)
    return z - lse[:, None], lse


def plogp(logp: Array) -> Array:
    """p log p, with 0 log 0 = 0"""
    return np.where(np.isfinite(logp), np.exp(logp) * np.where(np.isfinite(logp), logp, 0), 0)


def head_forward(
    x: Array, weight: Array, targets: Array, temperature: float = 1.0, vocab_mask: Array | None = None
) -> tuple[Array, Array, Array]:
    """targets [N, K]; a row whose first target is -1 is skipped and gives 0, and so does a later -1. -> logprobs [N, K], entropy [N], lse [N]"""
    trained = targets[:, 0] >= 0
    logp, lse = head_log_softmax(x, weight, temperature, vocab_mask)
    logprobs = np.where(targets >= 0, np.take_along_axis(logp, np.maximum(targets, 0), axis=1), 0)
    entropy = -plogp(logp).sum(-1)
    return np.where(trained[:, None], logprobs, 0), np.where(trained, entropy, 0), np.where(trained, lse, 0)


def head_backward(
    x: Array,
    weight: Array,
    targets: Array,
    temperature: float = 1.0,
    vocab_mask: Array | None = None,
    dlogprobs: Array | None = None,
    dentropy: Array | None = None,
    dlse: Array | None = None,
) -> tuple[Array, Array]:
    """d logprob_k / dz = 1[j = k] - p; d entropy / dz = -p (log p + entropy); d lse / dz = p. -> dx [N, C], dweight [V, C]"""
    trained = targets[:, 0] >= 0
    logp, _ = head_log_softmax(x, weight, temperature, vocab_mask)
    p = np.exp(logp)
    dz = np.zeros_like(p)
    if dlogprobs is not None:
        dlogprobs = np.where(targets >= 0, f64(dlogprobs), 0)
        for k in range(targets.shape[1]):
            dz[np.arange(len(dz)), np.maximum(targets[:, k], 0)] += dlogprobs[:, k]
        dz -= p * dlogprobs.sum(1, keepdims=True)
    if dentropy is not None:
        entropy = -plogp(logp).sum(-1, keepdims=True)
        dz -= f64(dentropy)[:, None] * (plogp(logp) + p * entropy)
    if dlse is not None:
        dz += f64(dlse)[:, None] * p
    dz[~trained] = 0
    return dz @ f64(weight) / float(temperature), dz.T @ f64(x) / float(temperature)


def head_forward_backward(
    x: Array,
    weight: Array,
    targets: Array,
    dlogprobs: Array,
    temperature: float = 1.0,
    vocab_mask: Array | None = None,
) -> tuple[Array, Array, Array, Array, Array]:
    """-> logprobs, entropy, lse, dx, dweight"""
    forward = head_forward(x, weight, targets, temperature, vocab_mask)
    return *forward, *head_backward(x, weight, targets, temperature, vocab_mask, dlogprobs)


def sampling_probabilities(logits: Array, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Array:
    """What head_sample draws from, for one row of logits [V] (-inf = masked): top_k, then min_p, then top_p. -> [V], sums to 1

    Equal logits are ranked by id. Each cut works on what the one before left, renormalised; top_p keeps the fewest ids
    whose probabilities reach it.
    """
    logits = f64(logits)
    order = np.lexsort((np.arange(len(logits)), -logits))  # best first
    order = order[np.isfinite(logits[order])]
    if temperature == 0:
        order = order[:1]
        temperature = 1.0
    p = np.exp((logits[order] - logits[order[0]]) / temperature)
    if top_k > 0:
        order, p = order[:top_k], p[:top_k]
    if min_p > 0:
        keep = p >= min_p * p[0]
        order, p = order[keep], p[keep]
    if top_p < 1:
        before = np.cumsum(p / p.sum()) - p / p.sum()  # probability of everything better
        keep = before < top_p
        keep[0] = True
        order, p = order[keep], p[keep]
    out = np.zeros(len(logits))
    out[order] = p / p.sum()
    return out


def decode_advance(sampled: Array, logprobs: Array, stop_ids: Array | None, cu_seqlens: Array, past_lens: Array, remaining: Array, tokens: Array,
                   positions: Array, **sampling: Array) -> dict[str, Array]:  # fmt: skip
    """What a step of decoding leaves to the next, by argument (ops.h): what was sampled, by sequence, and the rows of those that go on"""
    S, N = len(past_lens), len(tokens)
    out = {"out_tokens": np.full(S, -1), "out_logprobs": np.zeros(S), "past_lens": past_lens.copy(), "remaining": remaining.copy(), "cu_seqlens": cu_seqlens.copy()}
    rows: list[tuple[int, int]] = []  # (sequence, its row in this step)
    for s in range(S):
        if cu_seqlens[s + 1] > cu_seqlens[s]:
            n = cu_seqlens[s]
            out["out_tokens"][s], out["out_logprobs"][s] = sampled[n], logprobs[n]
            out["past_lens"][s] += 1
            out["remaining"][s] -= 1
            if stop_ids is not None and sampled[n] in stop_ids[s]:
                out["remaining"][s] = 0
            if out["remaining"][s] > 0:
                rows.append((s, n))
        out["cu_seqlens"][s + 1] = len(rows)
    for name, values in sampling.items():
        out[name] = values.copy()
        out[name][: len(rows)] = [values[n] + (name == "counters") for _, n in rows]
    rest = [0] * (N - len(rows))
    return out | {"tokens": np.array([sampled[n] for _, n in rows] + rest, int), "positions": np.array([out["past_lens"][s] for s, _ in rows] + rest, int)}


# ---- optimizer ---------------------------------------------------------------------------------------------------


def global_norm(x: Array) -> float:
    return float(np.sqrt((f64(x) ** 2).sum()))


def adamw(param: Array, grad: Array, m: Array, v: Array, norm: float, hyper: ArrayLike) -> tuple[Array, Array, Array]:
    """hyper = (lr, beta1, beta2, eps, weight_decay, max_norm, 1 - beta1^t, 1 - beta2^t); norm: gradient norm. -> param, m, v"""
    lr, beta1, beta2, eps, weight_decay, max_norm, correction1, correction2 = f64(hyper)
    param, grad, m, v = f64(param), f64(grad), f64(m), f64(v)
    if not np.isfinite(norm):
        return param, m, v
    if max_norm > 0 and norm > max_norm:
        grad = grad * (max_norm / norm)
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    param = param - lr * (m / correction1 / (np.sqrt(v / correction2) + eps) + weight_decay * param)
    return param, m, v


def muon_momentum(m: Array, grad: Array, norm: float, hyper: ArrayLike) -> tuple[Array, Array]:
    """hyper = (lr, momentum, nesterov, weight_decay, max_norm); norm: gradient norm of the whole model. -> out, m"""
    _, momentum, nesterov, _, max_norm = f64(hyper)
    m, grad = f64(m), f64(grad)
    if not np.isfinite(norm):
        return np.zeros_like(m), m
    if max_norm > 0 and norm > max_norm:
        grad = grad * (max_norm / norm)
    m = momentum * m + (1 - momentum) * grad
    return (momentum * m + (1 - momentum) * grad if nesterov else m), m


def muon_update(param: Array, x: Array, norm: float, hyper: ArrayLike, scale: float) -> Array:
    """-> param, moved by lr (scale x + weight_decay param) unless the norm is not finite"""
    lr, _, _, weight_decay, _ = f64(hyper)
    return f64(param) - (lr * (scale * f64(x) + weight_decay * f64(param)) if np.isfinite(norm) else 0.0)


def normalize(x: Array, norm: float, eps: float) -> Array:
    """x / max(norm, eps)"""
    return f64(x) / max(norm, eps)


def linear_combination(x: Array, alpha: float, y: Array | None = None, beta: float = 0.0) -> Array:
    """alpha x + beta y"""
    return alpha * f64(x) + (beta * f64(y) if y is not None else 0.0)
