"""That the machine code of the kernels has the instructions they were written for, and no traffic to local memory (spilled registers).

    python dev/sass_check.py build/cuda/_cuda.so

Needs cuobjdump and nvdisasm: they come with the toolkit, or by `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

# kernel, architecture -> instructions it must contain: there, or (None) on every architecture it is compiled for
REQUIRED = {
    (r"product_kernel<.*Tile<", None): ("HMMA.16816.F32.BF16", "LDSM.16.M", "LDGSTS.E.BYPASS.128"),  # mma.sync, ldmatrix, cp.async
    (r"attention_sm80_kernel<\d+, [01],", None): ("HMMA.16816.F32.BF16", "LDSM.16.M", "LDGSTS.E.BYPASS.128", "LDS.128"),
    (r"attention_sm80_kernel<\d+, 2,", None): ("HMMA.16816.F32.BF16", "LDSM.16.M", "LDS.128"),  # a float32 cache is rounded on its way
    (r"attention_backward_sm80_kernel<", None): ("HMMA.16816.F32.BF16", "LDSM.16.M", "LDSM.16.MT88", "LDGSTS.E.BYPASS.128"),
    # for others these kernels are empty: wgmma, TMA, mbarrier.try_wait, setmaxnreg
    (r"wgmma_kernel<", "sm_90a"): ("HGMMA.64x", "UTMALDG.2D", "SYNCS", "USETMAXREG"),
    # and the rungs of its ladder: multicast in clusters, stores by TMA
    (r"wgmma_kernel<.*Plan<\d+, true, 2,", "sm_90a"): ("UTMALDG.2D.MULTICAST", "UCGABAR"),
    (r"wgmma_kernel<.*Plan<\d+, true, 2, true>", "sm_90a"): ("UTMASTG.2D",),
    (r"attention_sm90_kernel<", "sm_90a"): ("HGMMA.64x", "UTMALDG.2D", "SYNCS", "USETMAXREG", "MUFU.EX2"),
}
# Half of a layout's operands lie the other way round: ldmatrix.trans
REQUIRED_SOMEWHERE = {r"product_kernel<.*Tile<": ("LDSM.16.MT88",)}
# kernel -> instructions that run beside a wgmma: between the wait for the product before it and its own. A scheduler is free to
# move them behind both waits, where the code is right and slow.
BESIDE_WGMMA = {r"attention_sm90_kernel<\d+, true>": ("MUFU.EX2", 32)}
LOCAL = ("LDL", "STL")


def tool(name: str) -> str:
    places = [shutil.which(name), *(str(p) for p in Path(sysconfig.get_path("purelib"), "nvidia").glob(f"*/bin/{name}"))]
    for place in places:
        if place and os.access(place, os.X_OK):
            return place
    sys.exit(f"there is no {name}: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def instructions(library: str) -> dict[tuple[str, str], list[str]]:
    """The instructions of each architecture and kernel, in order"""
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    path = os.pathsep.join([os.path.dirname(nvdisasm), os.environ.get("PATH", "")])
    text = subprocess.run([cuobjdump, "-sass", library], capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}).stdout
    found: dict[tuple[str, str], list[str]] = {}
    arch, mine = "", list[str]()
    for line in text.splitlines():
        if match := re.search(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            mine = found.setdefault((arch, match[1]), [])
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            mine.append(match[1])
    return found


def beside_wgmma(kernel: list[str], part: str) -> int:
    """The most of an instruction between two waits for wgmma with none asked for in between"""
    waits = " ".join("|" if op.startswith("WARPGROUP.DEPBAR") else op for op in kernel).split("|")[1:-1]
    return max((stretch.count(part) for stretch in waits if "HGMMA" not in stretch), default=0)


def main() -> int:
    found = instructions(sys.argv[1])
    if not found:
        print("no kernel in", sys.argv[1])
        return 1
    names = subprocess.run(["c++filt"], input="\n".join(name for _, name in found), capture_output=True, text=True, check=True).stdout.split("\n")
    wrong, seen = [], set()
    somewhere: dict[tuple[str, str, str], bool] = {}
    for ((arch, _), kernel), name in zip(found.items(), names):
        counts = Counter(kernel)
        short = re.sub(r"^void |freedive::cuda::|\(anonymous namespace\)::", "", name).split("(")[0]
        many = lambda part: sum(n for op, n in counts.items() if op.startswith(part))
        for (pattern, only), wanted in REQUIRED.items():
            if only in (None, arch) and re.search(pattern, short):
                seen.add((pattern, only))
                wrong += [f"{arch} {short} has no {part}" for part in wanted if not many(part)]
                print(f"{arch:7} {short}: " + ", ".join(f"{many(part)} {part}" for part in wanted))
        for pattern, wanted in REQUIRED_SOMEWHERE.items():
            if re.search(pattern, short):
                for part in wanted:
                    key = (arch, pattern, part)
                    somewhere[key] = somewhere.get(key, False) or many(part) > 0
        for pattern, (part, least) in BESIDE_WGMMA.items():
            if arch == "sm_90a" and re.search(pattern, short):
                seen.add((pattern, arch))
                if beside_wgmma(kernel, part) < least:
                    wrong.append(f"{arch} {short} has {beside_wgmma(kernel, part)} {part} beside a wgmma, not {least}")
        if any(map(many, LOCAL)):
            wrong.append(f"{arch} {short} has {many('LDL')} loads and {many('STL')} stores of local memory")
    architectures = {arch for arch, _ in found}
    for pattern, only in (REQUIRED.keys() | {(pattern, "sm_90a") for pattern in BESIDE_WGMMA}) - seen:
        if only is None or only in architectures:
            wrong.append(f"no kernel {'' if only is None else f'of {only} '}is called {pattern}")
    wrong += [f"{arch}: no {pattern} has {part}" for (arch, pattern, part), there in somewhere.items() if not there]
    print(*wrong, sep="\n")
    print(f"{len(found)} kernels, {len(wrong)} findings")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
