"""torch's ways to do one op: WAYS[kind](case, way, device) gives a function that makes a call on arguments of its own, and how many bytes those take.

Products and attention take and give bfloat16, torch's way to train; what memory bounds is float32 on both sides, the same bytes. Arguments are normal numbers.
"""

from __future__ import annotations

import os

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BF16 = torch.bfloat16
aten = torch.ops.aten


torch._functorch.config.donated_buffer = False  # a compiled backward pass is timed again and again on what one forward pass kept


def compiled(function, device: str):
    """GPU_BENCH_COMPILER=inductor compiles in a dry run, too: a minute"""
    return torch.compile(function, backend=os.environ.get("GPU_BENCH_COMPILER", "inductor" if device == "cuda" else "eager"))


def product(case: dict, way: str, device: str):
    """torch.mm by cuBLAS and by cuBLASLt: which of them is faster depends on the shape. Also of a quantized product: the bfloat16 weight it takes the place of"""
    N, C, O = (case["sizes"][letter] for letter in "NCO")
    random = lambda *shape: torch.randn(*shape, device=device, dtype=BF16)

    def make():
        x, weight, dout = random(N, C), random(O, C), random(N, O)
        a, b = {"matmul_forward": (x, weight.t()), "matmul_backward_input": (dout, weight), "matmul_backward_weight": (dout.t(), x)}.get(case["op"], (x, weight.t()))
        out = torch.empty(len(a), b.shape[1], device=device, dtype=BF16)

        def call():
            if device == "cuda":
                torch.backends.cuda.preferred_blas_library(way)
            torch.mm(a, b, out=out)

        return call

    return make, 2 * (N * C + O * C + N * O)


def activated(case: dict, way: str, device: str):
    """The product, by torch.addmm, and the activation after it"""
    N, C, O = (case["sizes"][letter] for letter in "NCO")

    def make():
        x, weight, bias = (torch.randn(*shape, device=device, dtype=BF16) for shape in ((N, C), (O, C), (O,)))

        def call():
            if device == "cuda":
                torch.backends.cuda.preferred_blas_library(way)
            up = torch.addmm(bias, x, weight.t())
            if "swiglu" in case["op"]:
                gate, up = up.chunk(2, dim=1)
                return F.silu(gate) * up
            return F.gelu(up, approximate="tanh")

        return call

    return make, 2 * (N * C + O * C + 2 * N * O)


BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def attention(case: dict, way: str, device: str):
    B, T, H, D = (case["sizes"][letter] for letter in "BTHD")

    def make():
        q, k, v, dout = (torch.randn(B, T, H, D, device=device, dtype=BF16).transpose(1, 2) for _ in range(4))

        def forward():
            with sdpa_kernel(BACKENDS[way]):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        if case["op"] == "attention_forward":
            with torch.no_grad():
                forward()  # raises where the backend is not there

            def call():
                with torch.no_grad():
                    forward()

            return call
        inputs = [t.requires_grad_() for t in (q, k, v)]
        out = forward()
        return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)

    return make, 2 * 4 * B * T * H * D


def cached(case: dict, way: str, device: str):
    S, T, H, G, D = (case["sizes"][letter] for letter in "STHGD")

    def make():
        q, k, v = (torch.randn(S, heads, length, D, device=device, dtype=BF16) for heads, length in ((H, 1), (G, T), (G, T)))

        def call():
            with torch.no_grad(), sdpa_kernel(BACKENDS[way]):
                F.scaled_dot_product_attention(q, k, v, enable_gqa=G != H)

        return call

    return make, 4 * S * T * G * D


def memory(case: dict, way: str, device: str):
    op, N, C = case["op"], case["sizes"]["N"], case["sizes"]["C"]
    random = lambda *shape: torch.randn(*shape, device=device)

    def backward_of(function, *inputs):
        out = function(*inputs)
        dout = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)

    def forward_of(function, *inputs):
        def call():
            with torch.no_grad():
                function(*inputs)

        return call

    def make():
        maybe = (lambda f: compiled(f, device)) if way == "compile" else (lambda f: f)
        if op.startswith("rmsnorm"):
            norm = maybe(lambda x, w: F.rms_norm(x, (C,), w, 1e-6))
            inputs = random(N, C), random(C)
            return forward_of(norm, *inputs) if op.endswith("forward") else backward_of(norm, *(t.requires_grad_() for t in inputs))
        if op.startswith("layernorm"):
            x, w, b, dout = random(N, C), random(C), random(C), random(N, C)
            if op.endswith("forward"):
                return forward_of(lambda: F.layer_norm(x, (C,), w, b))
            _, mean, rstd = aten.native_layer_norm(x, (C,), w, b, 1e-5)
            return lambda: aten.native_layer_norm_backward(dout, x, (C,), mean, rstd, w, b, (True, True, True))
        if op == "gelu_forward":
            x = random(N, C)
            return forward_of(lambda: F.gelu(x, approximate="tanh"))
        if op == "gelu_backward":
            x, dout = random(N, C), random(N, C)
            return lambda: aten.gelu_backward(dout, x, approximate="tanh")
        if op.startswith("swiglu"):
            swiglu = maybe(lambda gate, up: F.silu(gate) * up)
            inputs = random(N, C), random(N, C)
            return forward_of(swiglu, *inputs) if op.endswith("forward") else backward_of(swiglu, *(t.requires_grad_() for t in inputs))
        if op == "rope":
            x, angle, positions = random(N, C // 64, 64), random(1024, 32), torch.arange(N, device=device) % 1024
            cos, sin = angle.cos(), angle.sin()

            def turn(x, cos, sin, positions):
                c, s, (a, b) = cos[positions][:, None], sin[positions][:, None], x.chunk(2, dim=-1)
                return torch.cat((a * c - b * s, b * c + a * s), dim=-1)

            return forward_of(maybe(turn), x, cos, sin, positions)
        if op.startswith("embedding"):
            table, tokens, dout = random(N, C), torch.randint(0, N, (N,), device=device), random(N, C)
            if op.endswith("forward"):
                return forward_of(lambda: F.embedding(tokens, table))
            return lambda: aten.embedding_dense_backward(dout, tokens, N, -1, False)
        if op == "global_norm":
            x = random(N * C)
            return forward_of(lambda: torch.linalg.vector_norm(x))
        if op == "adamw":
            parameters = [random(N * C // 16).requires_grad_() for _ in range(16)]
            for p in parameters:
                p.grad = torch.randn_like(p)
            return torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.1, fused=True).step
        raise ValueError(f"torch has no {op} here")

    return make, case["work"]


def head(case: dict, way: str, device: str):
    """Linear and cross-entropy, forward and backward, compiled"""
    N, C, V = (case["sizes"][letter] for letter in "NCV")

    def make():
        x, weight = ((torch.randn(*shape, device=device, dtype=BF16) * std).requires_grad_() for shape, std in (((N, C), 1.0), ((V, C), 0.02)))
        targets = torch.randint(0, V, (N,), device=device)
        loss = compiled(lambda x, w: F.cross_entropy(F.linear(x, w).float(), targets), device)
        return lambda: torch.autograd.grad(loss(x, weight), (x, weight))

    return make, 2 * (N * C + V * C + N * V)


WAYS = {"product": product, "activated": activated, "quantized": product, "attention": attention, "cached": cached, "memory": memory, "head": head}
