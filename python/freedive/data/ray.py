"""The same jobs as Ray tasks (extra [ray]). Each task watches one worker process of its own, so that a poisoned page is counted as
it is without Ray. The machines of the cluster must see the inputs and the folder of --out under the same paths.
"""

from __future__ import annotations

import logging
from typing import Any

from freedive.runs import UserError, progress

from .job import Job
from .supervise import Supervisor

TRIES = 3  # of a task whose machine was lost


def run_jobs(jobs: list[Job], address: str, page_seconds: float) -> None:
    """Runs the jobs that are not done on a cluster: its address, "auto", or "local" for this machine. UserError if a job cannot be done."""
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs the package ray, which is not installed", hint="pip install ray") from None
    todo = [job for job in jobs if not job.done()]
    if not todo:
        return
    if not ray.is_initialized():
        try:
            ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise UserError(f"no Ray cluster at {address}: {error}", hint="--ray local starts one here") from None
    task: Any = ray.remote(num_cpus=1, max_retries=TRIES)(_run_one)
    waiting = [task.remote(job, page_seconds) for job in todo]
    with progress.bar(len(jobs), "data: ray") as bar:
        bar.advance(len(jobs) - len(todo))
        while waiting:
            ready, waiting = ray.wait(waiting)
            for failure in ray.get(ready):
                if failure:
                    raise UserError(*failure)
            bar.advance(len(ready))


def _run_one(job: Job, page_seconds: float) -> tuple[str, str | None] | None:
    """On a machine of the cluster: the job, or what keeps it from being done."""
    try:
        Supervisor(1, page_seconds).run([job])
    except UserError as error:
        return error.message, error.hint
    return None
