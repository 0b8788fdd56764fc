"""What is measured: each case is one call of one op, or a step of a model, with sizes that both sides are told; and what it is compared with.

Cases stand in the order of what they tell: a run that has no time for all has the first ones. `full` sizes are those of GPT-2's family with buffers beyond a GPU's L2
cache; `tiny` ones run everything here and there within seconds, for tests, and measure nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

LAYOUTS = ("matmul_forward", "matmul_backward_input", "matmul_backward_weight")


@dataclass(frozen=True)
class Case:
    name: str
    kind: str  # product, activated, attention, cached, quantized, memory, head, train, decode
    op: str  # of ops.h; "" of a model
    sizes: dict[str, Any]
    work: float  # FLOP where the tensor cores bound it, bytes where memory does; tokens of a model
    bound: str  # bf16, copy, or weights: reading the model's once a token
    peers: tuple[str, ...] = ()  # ways of torch_side.py
    ladder: bool = False  # every variant of the op, the naive one too, else only the default and those on tensor cores

    def request(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sizes:
    """Of one run"""

    tokens: int  # rows of products
    models: dict[str, tuple[int, int, int]]  # width, layers, heads
    vocabulary: int
    attention: tuple[tuple[int, int, int, int], ...]  # B, T, H, D
    megabytes: int  # of each tensor of what memory bounds
    batch: tuple[int, int]  # sequences and length of a training step
    decode: tuple[tuple[int, int, int], ...]  # sequences, prompt, new tokens
    cached: tuple[tuple[int, int, int, int, int], ...]  # sequences, positions of each, H, G, D
    quantized: tuple[tuple[int, int, int], ...]  # N, C, O


FULL = Sizes(8192, {"124M": (768, 12, 12), "1.5B": (1600, 48, 25), "350M": (1024, 24, 16)}, 50304, ((16, 1024, 12, 64), (8, 2048, 16, 128), (2, 8192, 16, 128)),
             256, (16, 1024), ((1, 64, 192), (64, 64, 192), (256, 64, 192)), ((64, 4096, 32, 8, 128), (256, 1024, 12, 12, 64)),
             ((1, 1600, 6400), (16, 1600, 6400)))  # fmt: skip
TINY = Sizes(40, {"124M": (64, 2, 2)}, 96, ((2, 24, 2, 16), (1, 33, 2, 64)), 1, (2, 16), ((2, 4, 5),), ((3, 70, 4, 2, 64),), ((2, 64, 96),))


def products(s: Sizes, model: str, only_head: bool = False) -> Iterator[Case]:
    """The products of a layer, or that of the head (a quarter of the tokens: it runs in chunks), in the three layouts of training"""
    C = s.models[model][0]
    shapes = {"head": (C, s.vocabulary)} if only_head else {"qkv": (C, 3 * C), "projection": (C, C), "up": (C, 4 * C), "down": (4 * C, C)}
    for which, (inputs, outputs) in shapes.items():
        N = s.tokens // 4 if only_head else s.tokens
        for op in LAYOUTS:
            yield Case(f"{op} {model} {which}", "product", op, {"N": N, "C": inputs, "O": outputs}, 2.0 * N * inputs * outputs, "bf16", ("cublaslt", "cublas"))


ACTIVATED = ("matmul_gelu_forward", "matmul_swiglu_forward")


def activated(s: Sizes, model: str) -> Iterator[Case]:
    """A layer's first product with its activation; the peer's are two calls"""
    C, N = s.models[model][0], s.tokens
    for op in ACTIVATED:
        yield Case(f"{op} {model} up", "activated", op, {"N": N, "C": C, "O": 4 * C}, 8.0 * N * C * C, "bf16", ("cublaslt", "cublas"))


def attention(s: Sizes) -> Iterator[Case]:
    for B, T, H, D in s.attention:
        pairs = 2.0 * D * B * H * T * (T + 1) / 2  # FLOPs of one product over the causal half
        for op, products_ in (("attention_forward", 2), ("attention_backward", 5)):
            yield Case(f"{op} B{B} T{T} H{H} D{D}", "attention", op, {"B": B, "T": T, "H": H, "D": D}, products_ * pairs, "bf16", ("flash", "cudnn"))


def cached(s: Sizes) -> Iterator[Case]:
    """A decode step's attention: a row of each sequence reads its bfloat16 cache, in shuffled blocks; torch's in rows that follow each other"""
    for S, T, H, G, D in s.cached:
        yield Case(f"attention_cached S{S} T{T} H{H}/{G} D{D}", "cached", "attention_cached", {"S": S, "T": T, "H": H, "G": G, "D": D}, 4.0 * S * T * G * D, "copy", ("flash",))


def quantized(s: Sizes) -> Iterator[Case]:
    """A decode step's product with a weight in Q8_0, by int8; the peer's weight is bfloat16, 1.9 times the bytes"""
    for N, C, O in s.quantized:
        yield Case(f"quantized_matmul Q8_0 N{N} C{C} O{O}", "quantized", "quantized_matmul", {"N": N, "C": C, "O": O}, O * C * 34 / 32, "copy", ("cublaslt", "cublas"))


# op -> tensors of the same size that it reads and writes, ways of torch
MEMORY: dict[str, tuple[int, tuple[str, ...]]] = {
    "rmsnorm_backward": (3, ("compile", "eager")),
    "rmsnorm_forward": (2, ("eager",)),
    "layernorm_backward": (3, ("eager",)),
    "layernorm_forward": (2, ("eager",)),
    "adamw": (7, ("fused",)),
    "gelu_forward": (2, ("eager",)),
    "gelu_backward": (3, ("eager",)),
    "swiglu_forward": (3, ("compile",)),
    "swiglu_backward": (5, ("compile",)),
    "rope": (2, ("compile",)),
    "embedding_forward": (2, ("eager",)),
    "embedding_backward": (3, ("eager",)),
    "global_norm": (1, ("eager",)),
    "muon_momentum": (4, ()),
    "muon_update": (3, ()),
}


def memory(s: Sizes) -> Iterator[Case]:
    """The cases of `freedive bench ops`, on float32 tensors on both sides: the same bytes"""
    rows = s.megabytes * 250_000 // 768
    for op, (tensors, peers) in MEMORY.items():
        yield Case(op, "memory", op, {"megabytes": s.megabytes, "N": rows, "C": 768}, 4.0 * rows * 768 * tensors, "copy", peers)


def head(s: Sizes) -> Iterator[Case]:
    for model, (C, _, _) in s.models.items():
        sizes = {"N": s.tokens, "C": C, "V": s.vocabulary}
        yield Case(f"head_forward_backward {model}", "head", "head_forward_backward", sizes, 6.0 * s.tokens * C * s.vocabulary, "bf16", ("compile",))


def sizes_of(s: Sizes, model: str) -> dict[str, int]:
    width, layers, heads = s.models[model]
    return {"width": width, "layers": layers, "heads": heads, "vocabulary": s.vocabulary, "positions": max(1024 if width > 64 else 64, s.batch[1])}


def parameters(m: dict[str, int]) -> int:
    return m["vocabulary"] * m["width"] + m["positions"] * m["width"] + 12 * m["layers"] * m["width"] ** 2


def train(s: Sizes, way: str) -> Iterator[Case]:
    """A whole optimizer step, bfloat16 products; the processes of both sides begin with it, so its first step is the start-up"""
    m, (B, T) = sizes_of(s, "124M"), s.batch
    flop = 6.0 * (parameters(m) - m["positions"] * m["width"]) + 6.0 * m["layers"] * m["width"] * T  # of a token
    request = {"model": m, "batch": B, "length": T, "vocabulary": s.vocabulary, "mode": "bfloat16", "flop": flop}
    yield Case(f"train 124M {B}x{T}", "train", "", request, float(B * T), "bf16", (way,))


def decode(s: Sizes) -> Iterator[Case]:
    m = sizes_of(s, "124M")
    for B, prompt, new in s.decode:
        request = {"model": m, "batch": B, "prompt": prompt, "new": new, "vocabulary": s.vocabulary, "mode": "bfloat16", "steps": 16, "bytes": 2.0 * parameters(m)}
        yield Case(f"decode 124M batch {B}", "decode", "", request, float(B * new), "weights", ("compile",))


def ladders(s: Sizes) -> Iterator[Case]:
    """One case of each op, small enough for its naive variant"""
    C, _, _ = s.models["124M"]
    N = s.tokens // 4
    for op in LAYOUTS:
        yield Case(f"{op} ladder", "product", op, {"N": N, "C": C, "O": 4 * C}, 8.0 * N * C * C, "bf16", ladder=True)
    for op in ACTIVATED:
        yield Case(f"{op} ladder", "activated", op, {"N": N, "C": C, "O": 4 * C}, 8.0 * N * C * C, "bf16", ladder=True)
    B, T, H, D = s.attention[0]
    B = max(1, B // 4)
    for op, products_ in (("attention_forward", 2), ("attention_backward", 5)):
        yield Case(f"{op} ladder", "attention", op, {"B": B, "T": T, "H": H, "D": D}, products_ * D * B * H * T * (T + 1.0), "bf16", ladder=True)
    yield Case("head_forward_backward ladder", "head", "head_forward_backward", {"N": N // 2, "C": C, "V": s.vocabulary}, 3.0 * N * C * s.vocabulary, "bf16", ladder=True)
    for case in (next(cached(s)), next(quantized(s)), *memory(s)):
        yield Case(f"{case.op} ladder", case.kind, case.op, case.sizes, case.work, case.bound, ladder=True)


def all_cases(s: Sizes) -> list[Case]:
    main, *others = s.models
    parts: list[Iterator[Case]] = [products(s, main), activated(s, main), attention(s), train(s, "compile_flash"), memory(s), decode(s), cached(s), quantized(s),
                                   products(s, main, only_head=True), head(s)]  # fmt: skip
    for model in others:
        parts += [products(s, model), products(s, model, only_head=True)]
    parts += [ladders(s), train(s, "compile_cudnn")]
    return [case for part in parts for case in part]


# ---- what the issue asks for: floors to ship with, and aims ------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A figure made of rows: the geometric mean of `ratio` (to one peer, if named) or `share` over those that `rows` selects"""

    name: str
    floor: float
    aim: float
    rows: Callable[[dict[str, Any]], bool] = field(repr=False)
    of: str = "ratio"  # or share
    peer: str | None = None


def _op(op: str, *starts: str) -> Callable[[dict[str, Any]], bool]:
    """Rows of an op with the variant that is taken by default, or of variants that begin so; the ladder's are other sizes"""
    return lambda r: r["op"] == op and not r["ladder"] and (r["variant"].startswith(starts) if starts else r["default"])


def _product(variant: str) -> Callable[[dict[str, Any]], bool]:
    return lambda r: r["kind"] == "product" and not r["ladder"] and r["variant"] == variant


def _attention(op: str, width: int, least: int, *starts: str) -> Callable[[dict[str, Any]], bool]:
    matches = _op(op, *starts)
    return lambda r: matches(r) and r["sizes"]["D"] == width and r["sizes"]["T"] >= least


TARGETS = (
    Target("products, sm90, of cuBLASLt or cuBLAS", 0.85, 0.95, _product("sm90")),
    Target("products, sm80, of cuBLASLt or cuBLAS", 0.45, 0.55, _product("sm80")),
    Target("attention forward, sm80, of SDPA FLASH", 0.85, 0.95, _op("attention_forward", "sm80"), peer="flash"),
    Target("attention backward, sm80, of SDPA FLASH", 0.75, 0.90, _op("attention_backward", "sm80"), peer="flash"),
    Target("attention forward, sm90, heads of 128, T >= 2048, of SDPA CUDNN", 0.75, 0.90, _attention("attention_forward", 128, 2048, "sm90"), peer="cudnn"),
    Target("attention backward, sm90, heads of 128, T >= 2048, of SDPA CUDNN", 0.65, 0.80, _attention("attention_backward", 128, 2048, "sm90"), peer="cudnn"),
    Target("attention forward, default, heads of 64, of SDPA CUDNN", 0.75, 0.90, _attention("attention_forward", 64, 0), peer="cudnn"),
    Target("RMSNorm forward, share of a copy", 0.85, 0.93, _op("rmsnorm_forward"), "share"),
    Target("RMSNorm backward, share of a copy", 0.70, 0.85, _op("rmsnorm_backward"), "share"),
    Target("RMSNorm backward, of torch.compile", 1.0, 1.3, _op("rmsnorm_backward"), peer="compile"),
    Target("head with loss, of torch.compile", 0.95, 1.1, _op("head_forward_backward"), peer="compile"),
    Target("head with loss, torch's memory over ours", 4, 8, lambda r: r["kind"] == "head memory"),
    Target("AdamW, of torch fused", 1.0, 1.1, _op("adamw"), peer="fused"),
    Target("AdamW, share of a copy", 0.85, 0.92, _op("adamw"), "share"),
    Target("GPT-2 124M, tokens/s of a training step, of torch.compile", 0.85, 1.05, lambda r: r["kind"] == "train"),
    Target("the same, torch's peak memory over ours", 1 / 0.8, 1 / 0.6, lambda r: r["kind"] == "train memory"),
    Target("start to the end of the first step, torch.compile's seconds over ours", 10, 50, lambda r: r["kind"] == "start-up"),
    Target("decode 124M, batch 1, share of reading the weights", 0.25, 0.40, lambda r: r["kind"] == "decode" and r["sizes"]["batch"] == 1, "share"),
    Target("decode 124M, batch 64, of torch.compile in a CUDA graph", 0.8, 1.0, lambda r: r["kind"] == "decode" and r["sizes"]["batch"] == 64),
    Target("decode 124M, batch 256, of torch.compile in a CUDA graph", 0.8, 1.0, lambda r: r["kind"] == "decode" and r["sizes"]["batch"] == 256),
)
