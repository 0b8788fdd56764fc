"""The tiles of the products on tensor cores and of attention by wgmma: registers and spills as ptxas told them, shared memory, FLOPs and bytes of a
stage, and the share of a card's peak that these predict. Predicted, never measured: benchmarks/gpu measures.

    cmake --build build/cuda --target freedive_cuda 2>&1 | tee log; python dev/tile_table.py log

A share is the least of five limits over the card's dense bfloat16 peak: what the instruction reaches (as others measured it); reading operands from
shared memory and writing stages to it, 128 bytes a clock; filling stages from the L2 cache; exponentials, 16 a clock; a softmax's instructions, 4 a
clock. Neither latencies, nor a last wave of blocks, nor what is done with finished sums are in it. csrc/cuda/README.md holds the table, which nothing
compares with what is printed. Fails where a tile spills, where a wgmma kernel takes more registers than a block of three warpgroups has, or where a
tile is not in the log.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ptxas_table import kernels


@dataclass
class Card:
    flops: int  # of a multiprocessor and clock, dense bfloat16
    l2: float  # bytes of a multiprocessor and clock
    mma: float  # the share of its peak that mma.sync reaches
    wgmma: float = 0.0  # and wgmma, of random numbers; 0: there is none


# mma.sync and wgmma on Hopper: arXiv 2402.13499 (64.9 % and 87.9 %); bytes of L2: what others measured
CARDS = {"A100": Card(2048, 47, 1.0), "H100": Card(4096, 34, 0.65, 0.88)}
SHARED_CLOCK = 128  # bytes
EXP_CLOCK, ISSUE_CLOCK = 16, 4
MOST_AT_LAUNCH = 168  # registers: 65,536 among three warpgroups, by eights; setmaxnreg shares them out anew


@dataclass
class Tile:
    name: str
    kernel: str  # a regular expression of its names
    flops: int  # of a stage
    depth: int  # of a stage: k, or keys
    stages: int
    operands: int  # bytes that the tensor cores read of a stage from shared memory
    written: int  # bytes of a stage
    sent: int  # of them, from the L2 cache by this block
    wgmma: bool = False
    more: int = 0  # bytes of shared memory beside the ring
    exps: int = 0  # of a stage
    instructions: int = 0  # of all warps a stage, counted in the SASS; 0: not counted

    def share(self, card: Card) -> float | None:
        instruction = card.wgmma if self.wgmma else card.mma
        if not instruction:
            return None
        clocks = [self.flops / card.flops / instruction, (self.operands + self.written) / SHARED_CLOCK, self.sent / card.l2, self.exps / EXP_CLOCK, self.instructions / ISSUE_CLOCK]
        return self.flops / card.flops / max(clocks)


def sm80(rows: int, columns: int, depth: int, down: int, across: int, stages: int, parts: bool) -> Tile:
    """down x across warps; each reads its rows of a and its columns of b"""
    operands = down * across * (rows // down + columns // across) * depth * 2
    name = f"{rows} x {columns}{', k in parts' if parts else ''}"
    kernel = rf"product_kernel<.*Tile<{rows}, {columns}, {depth}, .*{'true' if parts else 'false'}, \(Epilogue\)\d>$"  # whatever follows
    size = (rows + columns) * depth * 2
    return Tile(name, kernel, 2 * rows * columns * depth, depth, stages, operands, size, size)


def sm90(columns: int, persistent: bool, cluster: int, stored: bool) -> Tile:
    """Two consumers read 64 rows of a and all of b each; of a cluster each block loads its part of b"""
    words = [str(x).lower() for x in (persistent, cluster, stored)]
    kernel = rf"wgmma_kernel<.*Plan<{columns}, {words[0]}, {words[1]}, {words[2]}>"
    rung = "stored" if stored else "multicast" if cluster > 1 else "persistent" if persistent else "plain"
    size = lambda across: (128 + across) * 64 * 2
    return Tile(f"128 x {columns}, {rung}", kernel, 2 * 128 * columns * 64, 64, 4 if columns == 256 else 6, 2 * (64 + columns) * 64 * 2,
                size(columns), size(columns // cluster), True, 2 * 2 * 64 * 32 * 4 * stored)  # fmt: skip


def attention_sm90(head: int, ahead: bool) -> Tile:
    """128 pairs x 64 keys: two consumers read all keys and values each, their other operands are in registers"""
    size = 2 * 64 * head * 2
    kernel = rf"attention_sm90_kernel<{head}, {'true' if ahead else 'false'}>"
    return Tile(f"attention, heads of {head}, {'ahead' if ahead else 'plain'}", kernel, 2 * 2 * 128 * 64 * head, 64, 4, 2 * size, size, size, True, exps=128 * 64,
                instructions=8 * ({64: 336, 128: 402} if ahead else {64: 353, 128: 418})[head])  # fmt: skip


TILES = [
    *(sm80(*shape, parts) for parts in (False, True) for shape in ((128, 256, 32, 2, 4, 4), (128, 128, 32, 2, 2, 4), (64, 64, 32, 2, 2, 4), (16, 32, 64, 1, 2, 4))),
    *(sm90(columns, *rung) for columns in (256, 128) for rung in ((False, 1, False), (True, 1, False), (True, 2, False), (True, 2, True))),
    *(attention_sm90(head, ahead) for head in (64, 128) for ahead in (False, True)),
]  # fmt: skip


def main() -> int:
    rows = kernels("".join(Path(path).read_text() for path in sys.argv[1:]))
    names = subprocess.run(["c++filt"], input="\n".join(row[0] for row in rows), capture_output=True, text=True, check=True).stdout.split("\n")
    told = [(re.sub(r"freedive::cuda::|\(anonymous namespace\)::", "", name).rsplit("(", 1)[0], *row[1:]) for row, name in zip(rows, names)]
    print("| tile | registers (sm_80; sm_90a) | spills | shared memory, stages of k | FLOP a stage | bytes a stage | FLOP a byte of L2 | predicted share, A100 | H100 |")
    print("|---|---|---|---|---|---|---|---|---|")
    missing = wrong = 0
    for tile in TILES:
        mine = [row for row in told if re.search(tile.kernel, row[0])]
        registers = []
        for arch in ("sm_90a",) if tile.wgmma else ("sm_80", "sm_90a"):
            of_arch = sorted(row[2] for row in mine if row[1] == arch)
            missing += not of_arch
            registers.append("?" if not of_arch else str(of_arch[0]) if of_arch[0] == of_arch[-1] else f"{of_arch[0]} to {of_arch[-1]}")
        wrong += any(row[5] for row in mine) or (tile.wgmma and any(row[2] > MOST_AT_LAUNCH for row in mine if row[1] == "sm_90a"))
        size = (tile.stages * tile.written + tile.more) // 1024
        shares = ["-" if (share := tile.share(card)) is None else f"{share:.2f}" for card in CARDS.values()]
        print(f"| {tile.name} | {'; '.join(registers)} | {sum(row[5] for row in mine)} | {size} KB, {tile.stages} of {tile.depth} | {tile.flops:,} | {tile.sent:,} | "
              f"{tile.flops / tile.sent:.4g} | {' | '.join(shares)} |")  # fmt: skip
    if missing:
        print("some tiles are not in the log: is it of a whole build of csrc/cuda?")
    if wrong:
        print(f"{wrong} tiles spill, or take more than {MOST_AT_LAUNCH} registers of each of a block's 384 threads")
    return missing > 0 or wrong > 0


if __name__ == "__main__":
    sys.exit(main())
