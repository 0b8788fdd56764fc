"""torch's steps of GPT-2 (torch_worker.py's, as nanoGPT has it): training compiled with autocast to bfloat16 and one backend of attention; decoding with a static cache,
compiled, each token a replay of one CUDA graph. Steps are timed by the host's clock, since what the host does is part of them.
"""

from __future__ import annotations

import time

import torch
from torch_ops import compiled
from torch_worker import GPT


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def use_attention(backend: str) -> None:
    """For all that is compiled or called after it"""
    for name in ("flash", "cudnn", "mem_efficient"):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(name == backend)
    torch.backends.cuda.enable_math_sdp(False)


class Training:
    """way: compile_flash or compile_cudnn"""

    def __init__(self, sizes: dict, way: str, device: str) -> None:
        self.device = device
        if device == "cuda":
            use_attention(way.split("_")[1])
        self.net = GPT(**sizes["model"]).to(device)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.call = compiled(self.net, device)
        self.ids, self.targets = (torch.randint(0, sizes["vocabulary"], (sizes["batch"], sizes["length"]), device=device) for _ in range(2))

    def step(self) -> float:
        began = time.perf_counter()
        with torch.autocast(self.device, dtype=torch.bfloat16):
            loss = self.call(self.ids, self.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        wait(self.device)
        return time.perf_counter() - began


class Decoding:
    def __init__(self, sizes: dict, way: str, device: str) -> None:
        B, self.prompt, self.new = sizes["batch"], sizes["prompt"], sizes["new"]
        m, T = sizes["model"], sizes["prompt"] + sizes["new"]
        self.device = device
        self.net = GPT(**m).to(device, torch.bfloat16).eval()
        heads, width = m["heads"], m["width"]
        self.cache = [tuple(torch.zeros(B, heads, T, width // heads, device=device, dtype=torch.bfloat16) for _ in range(2)) for _ in self.net.blocks]
        self.tokens = torch.randint(0, sizes["vocabulary"], (B, self.prompt), device=device)
        self.token, self.at, places = torch.zeros(B, 1, dtype=torch.long, device=device), torch.zeros(1, dtype=torch.long, device=device), torch.arange(T, device=device)
        call = compiled(self.net.step, device)

        def one() -> None:
            self.token.copy_(call(self.token, self.at, self.cache, self.at, (places <= self.at).view(1, 1, 1, T)))
            self.at.add_(1)

        self.one = one
        if device == "cuda":
            with torch.inference_mode():
                side = torch.cuda.Stream()
                with torch.cuda.stream(side):
                    for _ in range(3):
                        one()
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    one()
            self.one = graph.replay

    def step(self) -> float:
        """All new tokens; the prompt is not counted"""
        with torch.inference_mode():
            self.token.copy_(self.net.step(self.tokens, torch.arange(self.prompt, device=self.device), self.cache, 0, None))
            self.at.fill_(self.prompt)
            wait(self.device)
            began = time.perf_counter()
            for _ in range(self.new):
                self.one()
            wait(self.device)
            return time.perf_counter() - began


class Steps:
    """What our_side.Steps is: the ways of one case, each a step that tells its seconds"""

    def __init__(self, case: dict, device: str) -> None:
        self.ways: dict[str, dict] = {}
        self.failed: dict[str, str] = {}
        self.work: dict[str, Training | Decoding] = {}
        for way in case["peers"]:
            try:
                self.work[way] = (Training if case["kind"] == "train" else Decoding)(case["sizes"], way, device)
                self.work[way].step()
                self.ways[way] = {}
            except Exception as e:
                self.failed[way] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"

    def time(self, way: str, seconds: float) -> dict:
        step = self.work[way].step
        first = step()
        times = [first] + [step() for _ in range(int(min(50, seconds / max(1e-9, first))))]
        return {"seconds": sum(times) / len(times), "calls": len(times)}
