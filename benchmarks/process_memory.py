"""The most memory a process has held; for the workers, ours and torch's, which know nothing else of each other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path


def high_water() -> int:
    """The most resident memory this process has had, bytes. Not getrusage's ru_maxrss, which begins with what the process that started it had."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def needs(work: Callable[[], object]) -> int:
    """Bytes of resident memory that a call takes at its most, on top of what is held before it."""
    Path("/proc/self/clear_refs").write_text("5")  # the most is what is held now
    before = high_water()
    work()
    return high_water() - before
