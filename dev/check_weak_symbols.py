"""Check that the objects of a CPU tier emit no weak symbols.

Every file of csrc/cpu is compiled once per instruction-set tier. A weak function (an inline or template from a header)
compiled with -mavx2 could be the copy the linker keeps for everybody, and crash a machine without AVX2.

    python dev/check_weak_symbols.py build/.../freedive_cpu_avx2.dir [more folders or .o files]
"""

import subprocess
import sys
from pathlib import Path

# The pointer through which unwind tables find the C++ personality routine: data, the same in every object, no code.
HARMLESS = {"DW.ref.__gxx_personality_v0"}
# What sanitizers define for themselves.
HARMLESS_PREFIXES = ("__asan_", "__ubsan_", "__odr_asan")


def weak_symbols(path: Path) -> list[str]:
    """Defined weak symbols (nm types W, V, u) of one object file."""
    lines = subprocess.run(["nm", "-C", "--defined-only", path], check=True, capture_output=True, text=True).stdout.splitlines()
    fields = [line.split(maxsplit=2) for line in lines]
    return [f[2] for f in fields if len(f) == 3 and f[1] in "WVu" and f[2] not in HARMLESS and not f[2].startswith(HARMLESS_PREFIXES)]


def main(arguments: list[str]) -> int:
    objects = [o for a in arguments for o in ([Path(a)] if Path(a).is_file() else sorted(Path(a).rglob("*.o")))]
    if not objects:
        print("no object files found; give the folder of a tier's objects", file=sys.stderr)
        return 2
    found = [(o, s) for o in objects for s in weak_symbols(o)]
    for path, symbol in found:
        print(f"{path.name}: {symbol}")
    print(f"{len(objects)} objects, {len(found)} weak symbols")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
