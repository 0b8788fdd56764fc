"""Running a program that a model wrote: bubblewrap, without network, files of the user or other processes, with limits of time and memory, and one
process of one thread (a system call filter; RLIMIT_NPROC does not bind root, and counts what else a user runs).

A program does not pass by leaving early (`sys.exit`, `os._exit`): what counts as passed is a word, made up for each run, that is written after the
last line. It keeps out accidents and no more: a program that looks for the word in its own process finds it, so this is no reward for practice.
"""

from __future__ import annotations

import functools
import os
import platform
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass

_BOOT = """
import resource, sys
word, megabytes, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.argv[1:] = []
for what, limit in ((resource.RLIMIT_AS, megabytes << 20), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 1 << 20), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(what, (limit, limit))
try:
    exec(compile(sys.stdin.read(), "program", "exec"), {"__name__": "program"})
except BaseException as error:
    sys.__stderr__.write(f"\\n{type(error).__name__}: {error}"[:500])
else:
    sys.__stderr__.write("\\n" + word)
"""
# (audit architecture, numbers of the system calls that make processes and threads), by platform.machine()
_FORKS = {"x86_64": (0xC000003E, (56, 57, 58, 435)), "aarch64": (0xC00000B7, (220, 435))}
OUTPUT = 65536  # bytes of it that are read


@dataclass(frozen=True)
class Outcome:
    passed: bool
    error: str  # "" if passed


def unavailable() -> str:
    """Why programs cannot be run here, or ""."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (apt install bubblewrap, dnf install bubblewrap)"
    if platform.machine() not in _FORKS:
        return f"the filter of system calls is not written for {platform.machine()} yet"
    return _refused()


@functools.cache
def _refused() -> str:
    try:
        tried = subprocess.run([*_box(), sys.executable, "-I", "-c", "pass"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not start: {error}"
    return f"bubblewrap cannot make its box here (namespaces may be off): {tried.stderr.strip()[:200]}" if tried.returncode else ""


@functools.cache
def _box() -> tuple[str, ...]:
    """The bwrap command up to the program: the system's libraries and this interpreter to read, an empty /tmp, and nothing else."""
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "OPENBLAS_NUM_THREADS", "1"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # first: the interpreter may lie below /tmp
    for folder in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.exists(folder):
            command += ["--ro-bind", folder, folder]
    for folder in dict.fromkeys(os.path.realpath(p) for p in (sys.base_prefix, sys.prefix)):
        if not folder.startswith("/usr"):
            command += ["--ro-bind", folder, folder]
    if (prefix := os.path.abspath(sys.prefix)) != os.path.realpath(sys.prefix):
        command += ["--ro-bind", os.path.realpath(sys.prefix), prefix]
    return (*command, "--chdir", "/tmp")


@functools.cache
def _filter() -> bytes:
    """The filter as classic BPF (seccomp(2)): another architecture's calls kill, those of _FORKS are EPERM, all others are allowed."""
    architecture, calls = _FORKS[platform.machine()]
    kill, refuse, allow = 0x80000000, 0x00050001, 0x7FFF0000
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    n = len(calls)
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0), (at_least, n + 1, 0, 0x40000000)]
    program += [(equal, n - i, 0, call) for i, call in enumerate(calls)]
    program += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def run_python(program: str, seconds: float = 10.0, megabytes: int = 1024) -> Outcome:
    """Run a program to its end. Passed if no exception left it, in time. Raises RuntimeError if `unavailable()`."""
    if why := unavailable():
        raise RuntimeError(why)
    word = secrets.token_hex(16)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as filter:
        filter.write(_filter())
        filter.seek(0)
        command = [*_box(), "--seccomp", str(filter.fileno()), sys.executable, "-I", "-c", _BOOT, word, str(megabytes), str(int(seconds) + 1)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=output, pass_fds=[filter.fileno()])
        try:
            child.communicate(program.encode("utf-8", "replace"), timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return Outcome(False, f"no end after {seconds:g} seconds")
        except BrokenPipeError:
            child.wait()
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - OUTPUT))
        said = output.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
    if said == word and child.returncode == 0:
        return Outcome(True, "")
    return Outcome(False, said[:500] or f"ended with code {child.returncode}")
