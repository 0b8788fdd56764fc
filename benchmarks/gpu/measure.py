"""One case: both sides are made ready, then every variant of ours, every way of torch's and the machine's limit take turns; rows of JSON come out."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sides
from cases import Case
from side_by_side import spread

Row = dict[str, Any]
CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
UNITS = {"bf16": ("TFLOP/s", 1e-12), "copy": ("GB/s", 1e-9)}
STICKY = re.compile(r"illegal|unspecified launch|misaligned address|assert|hardware stack|invalid program counter|uncorrectable|timed out|out of range")
FIRST = 400.0  # seconds that compilers may take


def smi(*queries: str) -> list[str] | None:
    """nvidia-smi's words on the GPU that programs take: CUDA_VISIBLE_DEVICES' first"""
    which = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    try:
        line = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(queries)}", "--format=csv,noheader,nounits", f"--id={which}"], capture_output=True, text=True, check=True)
        return [word.strip() for word in line.stdout.split(",")]
    except (OSError, subprocess.CalledProcessError):
        return None


def numbers(*queries: str) -> dict[str, float] | None:
    """MHz, W, degrees, MiB"""
    try:
        return {query: float(word) for query, word in zip(queries, smi(*queries) or ())} or None
    except ValueError:
        return None


def card() -> str | None:
    """The GPU's name"""
    found = smi("name")
    return found[0] if found else None


@dataclass
class Run:
    """What all cases of one run share"""

    device: str  # ours
    torch_device: str
    rounds: int
    seconds: float  # of each turn
    copy_bytes: int
    peak_n: int
    common: Row  # of every row: device, versions, dry_run

    def __post_init__(self) -> None:
        self.our = sides.ours(self.device)
        self.torch = sides.torch(self.torch_device)

    def stop(self) -> None:
        for side in (self.our, self.torch):
            if side is not None:
                side.stop()

    # ---- a case ----------------------------------------------------------------------------------------------------

    def rows(self, case: Case) -> Iterator[Row]:
        base: Row = {"bench": "gpu", "case": case.name, "kind": case.kind, "op": case.op, "sizes": case.sizes, "ladder": case.ladder, **self.common}
        if case.kind == "train":
            with tempfile.TemporaryDirectory() as caches:
                yield from self.train_rows(case, base, caches)
            return
        ours, failed = self.make(self.our, case)
        theirs, torch_failed = self.make(self.torch, case) if case.peers else ({}, {})
        yield from self.timed(case, base, ours, theirs, failed | torch_failed)
        if case.kind == "head" and not case.ladder:
            yield from self.head_memory(base, ours, theirs)

    def make(self, side: sides.Side | None, case: Case) -> tuple[Row, Row]:
        """Ways, and why others are not there"""
        if side is None:
            return {}, {"torch": "there is none: FREEDIVE_TORCH_PYTHON"}
        name = "freedive" if side is self.our else "torch"
        failed: Row = {}
        while True:
            try:
                answer = side.ask(FIRST, do="make", case=case.request(), skip=list(failed))
            except sides.Lost as lost:
                return {}, failed | {name: str(lost)}
            if "failure" in answer:
                side.stop()  # its device may be lost to it
                return {}, failed | {name: answer["failure"]}
            failed |= answer["failed"]
            if not any(STICKY.search(why) for why in answer["failed"].values()):
                return answer["ways"], failed
            side.stop()  # the same in a new process, without what took the device along

    def one(self, side: sides.Side | None, key: str, **request: Any) -> float | None:
        if side is None:
            return None
        answer = side.ask(**request)
        if "failure" in answer:
            raise sides.Lost(answer["failure"])
        return answer[key]

    def limit(self, case: Case) -> float | None:
        """FLOP/s or bytes a second, here and now"""
        if case.bound == "bf16":
            return self.one(self.torch, "rate", do="peak", n=self.peak_n)
        return self.one(self.our, "rate", do="copy", bytes=self.copy_bytes)

    def timed(self, case: Case, base: Row, ours: Row, theirs: Row, failed: Row) -> Iterator[Row]:
        turns = [(self.our, way) for way in ours] + [(self.torch, way) for way in theirs]
        times: dict[str, list[float]] = {way: [] for _, way in turns}
        calls: dict[str, int] = {}
        limits: list[float | None] = []
        slow: set[str] = set()  # naive ones: once is enough
        try:
            for round_ in range(self.rounds):
                limits.append(self.limit(case))
                for side, way in turns if round_ % 2 else reversed(turns):
                    if way in slow:
                        times[way].append(times[way][-1])
                        continue
                    assert side is not None
                    answer = side.ask(do="time", way=way, seconds=self.seconds)
                    if "failure" in answer:
                        raise sides.Lost(answer["failure"])
                    times[way].append(answer["seconds"])
                    calls[way] = answer["calls"]
                    if answer["seconds"] * answer["calls"] > 20 * self.seconds:
                        slow.add(way)
        except sides.Lost as lost:
            self.stop()
            failed = failed | {"timing": str(lost)}
        clocks = numbers(*CLOCKS)
        whole = min((len(t) for t in times.values()), default=0)
        if whole == 0:
            yield base | {"failed": failed, "clocks": clocks}
            return
        known = [x for x in limits if x is not None]
        limit = statistics.median(known) if known else None
        for way, about in ours.items():
            yield base | self.row(case, way, about, {w: times[w][:whole] for w in times}, list(theirs), limit) | {
                "calls": calls.get(way), "failed": failed, "clocks": clocks}  # fmt: skip

    def row(self, case: Case, way: str, about: Row, times: dict[str, list[float]], peers: list[str], limit: float | None) -> Row:
        mine = statistics.median(times[way])
        found: Row = {"variant": way, **about, "seconds": spread(times[way])}
        if case.bound in UNITS and case.kind != "train":
            unit, factor = UNITS[case.bound]
            found |= {"value": case.work / mine * factor, "unit": unit, "limit": None if limit is None else limit * factor}
            share = None if limit is None else case.work / mine / limit
        else:
            per_step = mine / case.sizes["new"] if case.kind == "decode" else mine
            need = case.sizes["bytes"] if case.kind == "decode" else case.sizes["flop"] * case.work
            found |= {"value": case.work / mine, "unit": "tokens/s", "limit": None if limit is None else limit * case.work / need / case.sizes.get("new", 1)}
            share = None if limit is None else need / per_step / limit
        ratios = {peer: statistics.median(t / o for t, o in zip(times[peer], times[way])) for peer in peers}
        found["peers"] = {peer: {"seconds": spread(times[peer]), "ratio": round(ratio, 4)} for peer, ratio in ratios.items()}
        best = min(ratios, key=lambda peer: ratios[peer]) if ratios else None
        found |= {"share": None if share is None else round(share, 4), "ratio": None if best is None else round(ratios[best], 4), "ratio_to": best}
        return found

    # ---- rows of their own -------------------------------------------------------------------------------------------

    def head_memory(self, base: Row, ours: Row, theirs: Row) -> Iterator[Row]:
        """What the loss takes beside its arguments"""
        for way, about in ours.items():
            scratch = theirs.get("compile", {}).get("scratch")
            if about.get("default") and scratch:
                yield base | {"case": base["case"] + " memory", "kind": "head memory", "variant": way, "default": True, "value": about["workspace"], "unit": "bytes",
                              "peers": {"compile": {"bytes": scratch}}, "ratio": round(scratch / max(1, about["workspace"]), 3), "ratio_to": "compile"}  # fmt: skip

    def used(self, side: sides.Side | None, before: float) -> tuple[float | None, float]:
        """Bytes of the GPU (in a dry run of the machine) that the side's process has taken since `before`, and what is taken now"""
        now = numbers("memory.used")
        if now is not None:
            return (now["memory.used"] * 2**20 - before), now["memory.used"] * 2**20
        return self.one(side, "high_water", do="memory"), 0.0

    def train_rows(self, case: Case, base: Row, caches: str) -> Iterator[Row]:
        """Both processes begin anew and compile anew: start-up to the end of the first step, memory, then steps in turns"""
        self.stop()
        self.torch = sides.torch(self.torch_device, caches)
        taken = (numbers("memory.used") or {"memory.used": 0.0})["memory.used"] * 2**20
        first: dict[str, float] = {}
        memory: dict[str, float | None] = {}
        ways: dict[str, Row] = {}
        failed: Row = {}
        for name, side in (("freedive", self.our), ("torch", self.torch)):
            began = time.perf_counter()
            ways[name], why = self.make(side, case)
            failed |= why
            if ways[name]:
                first[name] = time.perf_counter() - began
                memory[name], taken = self.used(side, taken)
        yield from self.timed(case, base, ways["freedive"], ways["torch"], failed)
        self.stop()
        self.torch = sides.torch(self.torch_device)  # its caches go now
        if len(first) < 2:
            return
        peer = case.peers[0]
        common = base | {"variant": "freedive", "default": True, "ratio_to": peer}
        yield common | {"case": "start-up to the end of the first step", "kind": "start-up", "value": round(first["freedive"], 2), "unit": "s",
                        "peers": {peer: {"seconds": round(first["torch"], 2)}}, "ratio": round(first["torch"] / first["freedive"], 3)}  # fmt: skip
        if all(memory.values()):
            yield common | {"case": f"{case.name} memory", "kind": "train memory", "value": memory["freedive"], "unit": "bytes",
                            "peers": {peer: {"bytes": memory["torch"]}}, "ratio": round(memory["torch"] / memory["freedive"], 3)}  # type: ignore[operator]  # fmt: skip
