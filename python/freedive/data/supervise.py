"""Worker processes for jobs, and what happens when one dies: it is replaced, and the job goes on from its last note.

Each worker writes into shared memory what it is doing (reading, or which page it is at) and since when. If it dies, the same record
is tried once more in a new process; if that dies too, the record is counted as `worker_crashed`. One that takes longer than
its time limit is killed and treated alike, as `timeout`. So a poisoned page costs itself, and a process killed from outside
(for lack of memory, say) costs nothing.

Readers try again by themselves what the network refuses (`remote`). A job that fails all the same is put behind the others; the run ends
when nothing else is left to do, or when as many as there are workers have failed with none done in between: the network is gone.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from freedive.runs import UserError
from freedive.runs.errors import disk_full, is_disk_full

from .job import Job, run_job
from .remote import FIRST_WAIT, LONGEST_WAIT, RemoteError

PHASES = ("start", "read", "page")
READ_SECONDS = 600.0  # a read that takes longer hangs
TRIES = 2  # of a record at which a worker died
NETWORK_TRIES = 5  # of a job whose file cannot be read from a place within, and broke off
TICK = 0.1


@dataclass
class _Worker:
    process: Any
    pipe: Any
    slot: int
    job: Job | None = None
    killed: bool = False


@dataclass
class Supervisor:
    """Runs jobs by `count` processes. `page_seconds`: the longest that one page may take, in CPU time where that is known."""

    count: int
    page_seconds: float = 20.0
    on_progress: Callable[[int, int], None] | None = None  # (jobs done, documents kept so far)
    _workers: list[_Worker] = field(default_factory=list)
    _poison: dict[int, dict[tuple[str, int], str]] = field(default_factory=lambda: collections.defaultdict(dict))
    _deaths: collections.Counter[tuple[int, str, int]] = field(default_factory=collections.Counter)
    _network: collections.Counter[int] = field(default_factory=collections.Counter)
    _later: list[tuple[float, Job]] = field(default_factory=list)  # (not before, job)
    _outages: int = 0  # jobs that failed for the network since the last one that was done

    def run(self, jobs: Iterable[Job]) -> None:
        """Every job that is not done yet. UserError if a job cannot be done; the results of the others stay."""
        todo = collections.deque(job for job in jobs if not job.done())
        if not todo:
            return
        todo[0].steps.prepare()  # before the fork: models and lists are shared
        count = max(1, min(self.count, len(todo)))
        self._shared = multiprocessing.RawArray("d", 5 * count)  # phase, record, started, CPU seconds then, documents kept
        self._finished = self._kept = 0
        try:
            self._workers = [self._start(slot) for slot in range(count)]
            while todo or self._later or any(worker.job for worker in self._workers):
                for entry in [entry for entry in self._later if entry[0] <= time.monotonic()]:
                    self._later.remove(entry)
                    todo.append(entry[1])
                for worker in self._workers:
                    if worker.job is None and todo:
                        self._give(worker, todo.popleft())
                self._wait(todo)
        finally:
            for worker in self._workers:
                self._stop(worker)
            self._workers = []

    def _start(self, slot: int) -> _Worker:
        # fork where it is safe enough: our children only run this package, and a spawned child would re-run a user's unguarded script
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        here, there = context.Pipe()
        self._shared[5 * slot] = 0
        # The child closes the parent's ends that it inherits, so that a closed pipe means a dead process.
        others = [here, *(worker.pipe for worker in self._workers if worker.slot != slot)]
        process = context.Process(target=_serve, args=(there, others, self._shared, slot, os.getpid()), daemon=True)
        with _no_fork_warning():
            process.start()
        there.close()
        return _Worker(process, here, slot)

    def _give(self, worker: _Worker, job: Job) -> None:
        self._shared[5 * worker.slot : 5 * worker.slot + 5] = [0, 0, time.monotonic(), 0, 0]
        worker.job, worker.killed = job, False
        with contextlib.suppress(OSError):  # it is dead already, which _wait sees
            worker.pipe.send((job, self._poison[job.index]))

    def _wait(self, todo: collections.deque[Job]) -> None:
        busy = [worker for worker in self._workers if worker.job]
        if not busy:  # only jobs for later are left
            time.sleep(TICK)
        ready = multiprocessing.connection.wait([worker.pipe for worker in busy], TICK)
        for worker in busy:
            job = worker.job
            assert job is not None
            if worker.pipe not in ready:
                self._check_time(worker)
                continue
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                self._died(worker, job, todo)
                continue
            worker.job = None
            if kind == "done":
                self._outages = 0
                self._finished += 1
                self._kept += int(self._shared[5 * worker.slot + 4])
            elif kind == "network":
                alone = not todo and not any(other.job for other in self._workers)
                self._failed(job, value, alone)
            elif kind == "user":
                raise UserError(*value)
            else:
                raise RuntimeError(f"in {job.sources[0].path}, record {int(self._shared[5 * worker.slot + 1])}:\n{value}")
        if self.on_progress is not None:
            running = sum(int(self._shared[5 * worker.slot + 4]) for worker in self._workers if worker.job)
            self.on_progress(self._finished, self._kept + running)

    def _failed(self, job: Job, answer: tuple[str, bool], alone: bool) -> None:
        """The network kept `job` from being done: (what happened, whether it was tried for as long as --network-seconds says)."""
        told, tried = answer
        self._network[job.index] += 1
        self._outages += tried
        failures = self._network[job.index]
        if failures >= NETWORK_TRIES or tried and (alone or failures > 1 or self._outages > self.count):
            raise UserError(told, hint="the same command goes on with what is missing; --network-seconds: how long to try again")
        wait = min(FIRST_WAIT * 2**failures, LONGEST_WAIT) * random.uniform(0.5, 1.5)
        self._later.append((time.monotonic() + min(wait, job.network_seconds), job))

    def _check_time(self, worker: _Worker) -> None:
        phase, _, started, cpu, _ = self._shared[5 * worker.slot : 5 * worker.slot + 5]
        limit = self.page_seconds if PHASES[int(phase)] == "page" else READ_SECONDS + (worker.job.network_seconds if worker.job else 0)
        passed = time.monotonic() - started
        if passed <= limit:
            return
        used = _cpu_seconds(worker.process.pid)
        if PHASES[int(phase)] != "page" or used is None or used - cpu > limit or passed > 10 * limit:  # on a busy machine, waiting is no fault
            worker.killed = True
            worker.process.kill()

    def _died(self, worker: _Worker, job: Job, todo: collections.deque[Job]) -> None:
        phase, number = PHASES[int(self._shared[5 * worker.slot])], int(self._shared[5 * worker.slot + 1])
        killed = worker.killed
        self._stop(worker)
        self._deaths[job.index, phase, number] += 1
        if self._deaths[job.index, phase, number] >= TRIES:
            if phase == "start":
                raise UserError("worker processes die before they read anything", hint="is there enough memory? try --workers 1")
            self._poison[job.index][phase, number] = "timeout" if killed else "worker_crashed"
        todo.appendleft(job)
        self._workers[self._workers.index(worker)] = self._start(worker.slot)

    def _stop(self, worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.kill()
        worker.process.join()


def _serve(pipe: Any, others: list[Any], shared: Any, slot: int, parent: int) -> None:
    """A worker: takes jobs from the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    gc.freeze()  # what was loaded before the fork is neither searched again nor copied
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    at = 5 * slot

    def tell(phase: str, number: int, kept: int) -> None:
        shared[at + 1], shared[at + 2] = number, time.monotonic()
        if phase == "page":
            shared[at + 3] = time.process_time()
        shared[at], shared[at + 4] = PHASES.index(phase), kept

    while True:
        try:
            job, poison = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            run_job(job, poison, tell)
            answer: tuple[str, Any] = ("done", None)
        except RemoteError as error:
            answer = ("network", (error.text, error.tried))
        except UserError as error:
            answer = ("user", (error.message, error.hint))
        except ModuleNotFoundError as error:
            answer = ("user", (f"this needs the Python package {error.name}, which is not installed", f"pip install {error.name}"))
        except MemoryError:
            os._exit(1)
        except Exception as error:
            answer = ("bug", traceback.format_exc())
            if is_disk_full(error):
                full = disk_full(job.folder, resumes=True)
                answer = ("user", (full.message, full.hint))
        pipe.send(answer)


def _watch(parent: int) -> None:
    """A parent that was killed must not leave its workers behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _cpu_seconds(pid: int) -> float | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


@contextlib.contextmanager
def _no_fork_warning() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads
        yield
