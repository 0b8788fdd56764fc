"""Reward functions in processes of their own, which can be killed: a checker that hangs, or takes its process with it, ends no run.

The completions of one prompt are a job. When a job is over its time its process is killed, and its completions are tried one by one, each
with the same limit; one that is over it again, or that kills the process, has no reward (None), and is counted. A process reads JSON lines and
writes JSON lines (worker.py); it has a session of its own, so what it started dies with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from freedive.runs import UserError

START = 60.0  # seconds for a process to import the function


@dataclass
class _Job:
    places: list[int]  # in the batch
    message: bytes
    alone: bool  # the second try of a single completion


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    ready: bool = False
    job: _Job | None = None
    until: float = 0.0
    read: bytearray = field(default_factory=bytearray)
    unsent: bytes = b""


class Workers:
    """`count` processes for one function; `timeout` seconds for the completions of a prompt, and for one alone. Close it when done."""

    def __init__(self, name: str, count: int = 2, timeout: float = 10.0):
        self.name, self.count, self.timeout = name, count, timeout
        self.died = 0  # of the completions that ran out of time in the last `score`, those that ended their process
        self.metrics: dict[str, list[float]] = {}  # what the function noted in the last `score`
        self._workers: list[_Worker] = []

    def score(self, prompts: list[Any], completions: list[Any], ids: list[Any], columns: dict[str, list[Any]], group: int) -> tuple[list[float], int]:
        """(a reward for each completion, NaN for none; how many ran out of time or ended their process). `group` completions in a row make a job.

        Raises UserError when the function fails, cannot be found, or gets what JSON cannot say.
        """
        self.metrics, self.died = {}, 0

        def job(places: list[int], alone: bool) -> _Job:
            take = lambda values: [values[i] for i in places]
            message = {"prompts": take(prompts), "completions": take(completions), "ids": take(ids), "columns": {k: take(v) for k, v in columns.items()}}
            try:
                return _Job(places, json.dumps(message).encode() + b"\n", alone)
            except (TypeError, ValueError) as error:
                raise UserError(f"the rows cannot be handed to the reward {self.name!r}: {error}", hint="--reward-timeout 0 calls it in this process") from None

        waiting = deque(job(list(range(at, min(at + group, len(prompts)))), False) for at in range(0, len(prompts), group))
        out = [float("nan")] * len(prompts)
        late = 0
        try:
            while waiting or any(w.job for w in self._workers):
                for worker in self._workers:
                    if waiting and worker.ready and worker.job is None:
                        self._give(worker, waiting.popleft())
                while len(self._workers) < min(self.count, len(waiting) + sum(w.job is not None for w in self._workers)):
                    self._workers.append(self._start())
                for worker in self._wait():
                    done, answer = self._take(worker)
                    if not done:
                        continue
                    current, worker.job = worker.job, None
                    if answer is None:  # over its time, or dead
                        self._kill(worker)
                        if current is None and time.monotonic() >= worker.until:
                            raise UserError(f"the process of the reward {self.name!r} was not ready after {START:g} seconds: what its file does when it is imported takes too long",
                                            hint="--reward-timeout 0 imports it in this process, without a limit")  # fmt: skip
                        if current is None:
                            raise UserError(f"the process of the reward {self.name!r} ended before it was ready", hint="does its file import alone?")
                        if current.alone or len(current.places) == 1:
                            late += 1
                            self.died += time.monotonic() < worker.until
                        else:
                            waiting.extend(job([i], True) for i in current.places)
                    elif "error" in answer:
                        raise UserError(answer["error"], hint=answer.get("hint") or "")
                    elif current is None:
                        worker.ready = True
                    else:
                        for i, value in zip(current.places, answer["values"], strict=True):
                            out[i] = float("nan") if value is None else float(value)
                        for key, values in answer["metrics"].items():
                            self.metrics.setdefault(key, []).extend(values)
        except BaseException:
            self.close()
            raise
        return out, late

    def close(self) -> None:
        for worker in list(self._workers):
            self._kill(worker)

    def _start(self) -> _Worker:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "freedive.rl.worker", self.name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True)
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        return _Worker(process, until=time.monotonic() + START)

    def _give(self, worker: _Worker, job: _Job) -> None:
        worker.job, worker.until, worker.unsent = job, time.monotonic() + self.timeout, job.message

    def _wait(self) -> list[_Worker]:
        """Workers that have said something, can be told the rest of their job, have died, or are over their time."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
                if worker.unsent:
                    selector.register(worker.process.stdin, selectors.EVENT_WRITE, worker)  # type: ignore[arg-type]
            busy = [w.until for w in self._workers if w.job is not None or not w.ready]
            found = {id(key.data): key.data for key, _ in selector.select(max(0.0, min(busy) - time.monotonic()) if busy else 0.0)}
        now = time.monotonic()
        return [w for w in self._workers if id(w) in found or (w.until <= now and (w.job is not None or not w.ready))]

    def _take(self, worker: _Worker) -> tuple[bool, dict[str, Any] | None]:
        """(whether a worker is done, its answer; None if it is dead or over its time)"""
        assert worker.process.stdin is not None and worker.process.stdout is not None
        try:
            if worker.unsent:
                worker.unsent = worker.unsent[os.write(worker.process.stdin.fileno(), worker.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            return True, None
        try:
            while piece := os.read(worker.process.stdout.fileno(), 1 << 16):
                worker.read += piece
                if piece.endswith(b"\n"):
                    break
            else:
                return True, None  # end of file
        except BlockingIOError:
            pass
        if worker.read.endswith(b"\n"):
            answer = json.loads(worker.read)
            worker.read.clear()
            return True, answer
        return (True, None) if time.monotonic() >= worker.until else (False, None)

    def _kill(self, worker: _Worker) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        for pipe in (worker.process.stdin, worker.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        worker.process.wait()
        self._workers.remove(worker)
