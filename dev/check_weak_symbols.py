"""Check that the objects of a CPU tier share no symbol with other tiers: none is weak, and those that are seen lie in the tier's namespace.

Every file of csrc/cpu is compiled once per instruction-set tier. A weak function (an inline or template from a header)
compiled with -mavx2 could be the copy the linker keeps for everybody, and crash a machine without AVX2.

    python dev/check_weak_symbols.py build/.../freedive_cpu_*.dir [more folders or .o files]

NM names another nm, for objects of another architecture.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

# The pointer through which unwind tables find the C++ personality routine: data, the same in every object, no code.
HARMLESS = {"DW.ref.__gxx_personality_v0"}
# What sanitizers define for themselves.
HARMLESS_PREFIXES = ("__asan_", "__ubsan_", "__odr_asan")


def shared_symbols(path: Path) -> list[str]:
    """Defined symbols of one object file that the linker could merge with those of another: weak (nm types W, V, u), or global and, in a
    folder freedive_cpu_NAME.dir, outside of the namespace tier_NAME."""
    command = [os.environ.get("NM", "nm"), "-C", "--defined-only", str(path)]
    fields = [line.split(maxsplit=2) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()]
    tier = next((m[1] for part in reversed(path.parts) if (m := re.fullmatch(r"freedive_cpu_(\w+)\.dir", part))), None)
    found = []
    for kind, name in ((f[1], f[2]) for f in fields if len(f) == 3):
        if name in HARMLESS or name.startswith(HARMLESS_PREFIXES):
            continue
        if kind in "WVwvu":
            found.append(name)
        elif kind.isupper() and tier is not None and f"freedive::tier_{tier}::" not in name:
            found.append(f"{name} (outside of tier_{tier})")
    return found


def main(arguments: list[str]) -> int:
    objects = [o for a in arguments for o in ([Path(a)] if Path(a).is_file() else sorted(Path(a).rglob("*.o")))]
    if not objects:
        print("no object files found; give the folder of a tier's objects", file=sys.stderr)
        return 2
    found = [(o, s) for o in objects for s in shared_symbols(o)]
    for path, symbol in found:
        print(f"{path.name}: {symbol}")
    print(f"{len(objects)} objects, {len(found)} weak or shared symbols")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
