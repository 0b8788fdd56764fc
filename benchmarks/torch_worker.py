"""The peer: GPT-2 written with torch as nanoGPT has it, in a process of its own. Runs in the environment of FREEDIVE_TORCH_PYTHON, knows
nothing of freedive, and is driven by side_by_side.py through JSON lines: train steps, steps on unequal conversations, decoding, ops.
"""

from __future__ import annotations

import math
import os
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from answering import answer_lines
from process_memory import high_water, needs

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch.manual_seed(0)
now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter  # what else the machine does takes no CPU-seconds of one thread


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def split(self, x):
        B, T, C = x.shape
        return (t.view(B, T, self.heads, C // self.heads).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(C, dim=2))

    def rest(self, x, y):
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    def forward(self, x):
        q, k, v = self.split(x)
        return self.rest(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def decode(self, x, keys, values, at, mask):
        """x [B, 1, C]; keys and values [B, H, T, D], written at `at`; mask bool [1, 1, 1, T], or None to read up to `at`."""
        q, k, v = self.split(x)
        if mask is None:
            T = x.shape[1]
            keys[:, :, at : at + T], values[:, :, at : at + T] = k, v
            keys, values = keys[:, :, : at + T], values[:, :, : at + T]
            return self.rest(x, F.scaled_dot_product_attention(q, keys, values, is_causal=T > 1))
        keys.index_copy_(2, at, k), values.index_copy_(2, at, v)
        return self.rest(x, F.scaled_dot_product_attention(q, keys, values, attn_mask=mask))


class GPT(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, positions: int):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * layers) if "out" in name or "down" in name else 1))

    def forward(self, ids, targets):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)

    def step(self, ids, positions, cache, at, mask):
        x = self.wte(ids) + self.wpe(positions)
        for block, (keys, values) in zip(self.blocks, cache):
            x = block.decode(x, keys, values, at, mask)
        return self.head(self.norm(x[:, -1:])).argmax(-1)


class Training:
    """mode: float32, amp or bf16, with _compile behind it or not. amp is autocast; bf16 has weights, gradients and moments in bfloat16."""

    def __init__(self, model: dict, mode: str, dynamic: bool = False):
        kind, _, compiled = mode.partition("_")
        self.net = GPT(**model)
        if kind == "bf16":
            self.net = self.net.to(torch.bfloat16)
        self.amp = kind == "amp"
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.call = torch.compile(self.net, dynamic=dynamic or None) if compiled else self.net

    def step(self, ids, targets) -> float:
        began = now()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.amp):
            loss = self.call(ids, targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return now() - began


def make_train(r: dict):
    training = Training(r["model"], r["mode"])
    ids, targets = (torch.randint(0, r["vocabulary"], (r["batch"], r["length"])) for _ in range(2))
    return lambda: training.step(ids, targets)


def make_unequal(r: dict):
    """One epoch over r["batches"], each a list of sequences, padded on the right to the longest of its batch."""
    training = Training(r["model"], r["mode"], dynamic=True)
    batches = []
    for sequences in r["batches"]:
        ids, targets = torch.zeros(len(sequences), max(map(len, sequences)) - 1, dtype=torch.long), None
        targets = torch.full_like(ids, -1)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence) - 1], targets[row, : len(sequence) - 1] = torch.tensor(sequence[:-1]), torch.tensor(sequence[1:])
        batches.append((ids, targets))
    return lambda: sum(training.step(*b) for b in batches)


def make_decode(r: dict):
    """r["new"] tokens of r["batch"] sequences after a prompt of r["prompt"], whose own time is not counted. mode: eager or compile, _ and a dtype."""
    kind, _, dtype = r["mode"].partition("_")
    B, P, N = r["batch"], r["prompt"], r["new"]
    net = GPT(**r["model"]).to(getattr(torch, dtype)).eval()
    C, H, T = r["model"]["width"], r["model"]["heads"], P + N
    cache = [tuple(torch.zeros(B, H, T, C // H, dtype=getattr(torch, dtype)) for _ in range(2)) for _ in net.blocks]
    prompt = torch.randint(0, r["vocabulary"], (B, P))
    step = torch.compile(net.step) if kind == "compile" else net.step
    places = [torch.tensor([P + i]) for i in range(N)]
    masks = [(torch.arange(T) <= P + i).view(1, 1, 1, T) for i in range(N)]

    def run() -> float:
        with torch.inference_mode():
            token = net.step(prompt, torch.arange(P), cache, 0, None)
            began = now()
            for i in range(N):
                at, mask = (places[i], masks[i]) if kind == "compile" else (P + i, None)
                token = step(token, places[i], cache, at, mask)
            return now() - began

    return run


def make_op(r: dict):
    """One op at GPT-2's sizes, forward or backward. Returns the seconds of one call."""
    name, dtype, N, C = r["op"], getattr(torch, r["dtype"]), r["N"], r["C"]
    random = lambda *shape: torch.randn(*shape).to(dtype).requires_grad_()

    def timed(call):
        def run() -> float:
            began = now()
            call()
            return now() - began

        return run

    if name.startswith("adamw"):
        parameters = [random(N * C // 16) for _ in range(16)]
        for p in parameters:
            p.grad = torch.randn_like(p)
        return timed(torch.optim.AdamW(parameters, fused=True).step)
    if name.startswith("clip"):
        parameters = [random(N * C // 16) for _ in range(16)]
        for p in parameters:
            p.grad = torch.randn_like(p)
        return timed(lambda: torch.nn.utils.clip_grad_norm_(parameters, 1e9))
    if name.startswith("head"):  # LM head and cross-entropy, forward and backward, compiled
        x, weight, targets = random(N, C), random(r["V"], C), torch.randint(0, r["V"], (N,))
        loss = lambda x, w: F.cross_entropy(F.linear(x, w).float(), targets)
        if r.get("compile"):
            loss = torch.compile(loss)
        return timed(lambda: torch.autograd.grad(loss(x, weight), (x, weight)))
    if name.startswith("attention"):
        B, T, H, D = r["attention"]
        q, k, v, dout = random(B, H, T, D), random(B, H, T, D), random(B, H, T, D), random(B, H, T, D).detach()
        call, inputs = (lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)), (q, k, v)
        if name.endswith("forward_backward"):
            return timed(lambda: torch.autograd.grad(call(), inputs, dout))
    elif name.startswith("layernorm"):
        x, weight, bias = random(N, C), random(C), random(C)
        call, inputs = (lambda: F.layer_norm(x, (C,), weight, bias)), (x, weight, bias)
    elif name.startswith("gelu"):
        x = random(N, C)
        call, inputs = (lambda: F.gelu(x, approximate="tanh")), (x,)
    else:
        raise SystemExit(f"no op {name}")
    if name.endswith("backward"):
        out = call()
        dout = torch.randn_like(out)
        return timed(lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True))

    def forward() -> None:
        with torch.no_grad():
            call()

    return timed(forward)


MAKERS = {"train": make_train, "unequal": make_unequal, "decode": make_decode, "op": make_op}


class Answers:
    """As our_worker.py's; {"do": "memory"} tells what one more call takes: the first one compiles."""

    def __init__(self) -> None:
        self.work = None

    def __call__(self, request: dict) -> dict:
        if request["do"] == "make":
            began = time.perf_counter()
            self.work = MAKERS[request["kind"]](request)
            self.work()
            return {"first": time.perf_counter() - began, "version": torch.__version__}
        if request["do"] == "memory":
            return {"needs": needs(self.work)}
        return {"seconds": [self.work() for _ in range(request["n"])], "high_water": high_water()}


if __name__ == "__main__":
    answer_lines(Answers())
