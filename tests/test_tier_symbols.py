"""No code of an instruction-set tier may be merged with another tier's: a machine without AVX-512 would run the AVX-512 copy and crash.

The objects are those of the last build in build/ (pip install . leaves them there); dev/arm64.sh runs the same check on arm64's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECK = [sys.executable, str(ROOT / "dev" / "check_weak_symbols.py")]

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here: apt install binutils")


def last_build() -> list[Path]:
    """Folders of the tiers' objects of the newest complete build in build/."""
    builds: dict[Path, list[Path]] = {}
    for folder in (ROOT / "build").glob("**/freedive_cpu_*.dir"):
        if any(folder.rglob("*.o")):
            builds.setdefault(folder.parent, []).append(folder)
    return max(builds.values(), key=lambda folders: max(f.stat().st_mtime for f in folders), default=[])


def test_no_symbol_of_a_tier_can_be_taken_for_anothers():
    tiers = last_build()
    if not tiers:
        pytest.skip("no objects in build/: pip install . or dev/build_inplace.sh, run in this checkout, leaves them there")
    done = subprocess.run([*CHECK, *map(str, tiers)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) >= 10 * len(tiers)  # it looked at the objects: a file of kernels each


@pytest.mark.parametrize("code, wrong", [
    ("inline __attribute__((used)) int twice(int x) { return 2 * x; }", "twice(int)"),  # weak: the trap itself
    ("#include <vector>\nvoid add(std::vector<int>& v) { v.push_back(1); }", "_M_realloc_insert"),
    ("int table[4];", "table (outside of tier_fast)"),
    ("namespace { int hidden(int x) { return x; } } namespace freedive::tier_fast { int seen(int x) { return hidden(x); } }", None),
])  # fmt: skip
def test_the_check_finds_the_trap(tmp_path: Path, code: str, wrong: str | None):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    folder = tmp_path / "freedive_cpu_fast.dir"
    folder.mkdir()
    (tmp_path / "code.cpp").write_text(code)
    subprocess.run([compiler, "-std=c++17", "-O1", "-c", tmp_path / "code.cpp", "-o", folder / "code.o"], check=True)
    done = subprocess.run([*CHECK, str(folder)], capture_output=True, text=True)
    assert done.returncode == (0 if wrong is None else 1), done.stdout + done.stderr
    assert wrong is None or wrong in done.stdout
