"""What nvcc -Xptxas=-v said of every kernel: registers, shared memory, stack and spills; fails where a kernel spills or has a stack frame,
or where its wgmma are done one after the other.

    cmake --build build/cuda --target freedive_cuda 2>&1 | tee log; python dev/ptxas_table.py log

A frame that is meant goes into ALLOWED, with its reason.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# kernel -> bytes of stack it may have. Calls of functions that are not inlined keep their return state there; it is no spill.
ALLOWED: dict[str, int] = {}


def kernels(log: str) -> list[tuple[str, str, int, int, int, int]]:
    """Mangled name, architecture, registers, shared bytes, stack bytes, spilled bytes of each compiled kernel."""
    found = []
    for part in log.split("Compiling entry function ")[1:]:
        name, arch = re.match(r"'(\w+)' for '(\w+)'", part).groups()  # type: ignore[union-attr]
        told = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)  # of it, and of functions not inlined
        stack, stores, loads = (sum(map(int, column)) for column in zip(*told))
        registers = int(re.search(r"Used (\d+) registers", part).group(1))  # type: ignore[union-attr]
        shared = re.search(r"(\d+) bytes smem", part)
        found.append((name, arch, registers, int(shared.group(1)) if shared else 0, stack, stores + loads))
    return found


def main() -> int:
    log = "".join(Path(path).read_text() for path in sys.argv[1:])
    rows = sorted(set(kernels(log)))
    if not rows:
        print("no kernel in the log: was nvcc run with -Xptxas=-v, and did it compile anything?")
        return 1
    names = subprocess.run(["c++filt"], input="\n".join(row[0] for row in rows), capture_output=True, text=True, check=True).stdout.split("\n")
    bad = 0
    print("arch    registers  shared  stack  spills  kernel")
    for (_, arch, registers, shared, stack, spills), name in zip(rows, names):
        short = re.sub(r"^void |freedive::cuda::|\(anonymous namespace\)::|\(.*$", "", name.replace("(anonymous namespace)", "_")).replace("_::", "")
        wrong = spills > 0 or stack > ALLOWED.get(short, 0)
        bad += wrong
        print(f"{arch:7} {registers:9} {shared:7} {stack:6} {spills:7}  {short}{'   <-- spills' if wrong else ''}")
    print(f"{len(rows)} kernels, {bad} that spill or have a stack frame")
    serialized = [line for line in log.splitlines() if "wgmma" in line and "serialized" in line]  # said of code that is right and slow
    print(*serialized, sep="\n", end="\n" if serialized else "")
    return bad > 0 or bool(serialized)


if __name__ == "__main__":
    sys.exit(main())
