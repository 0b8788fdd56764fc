"""A small stage that uses all of `freedive.runs`: logs, appended files, write-once files, checkpoints with arrays, a summary.

`python toy.py OUT [steps] [pause]` runs it in a process of its own, for the tests that kill it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from freedive.runs import option, stage, write_json_atomic


@dataclass(frozen=True)
class ToyConfig:
    data: Path | None = option(None, "a file or folder")
    steps: int = option(12, "steps")
    rate: float = option(0.5, "learning rate")
    names: tuple[str, ...] = option(("a", "b"), "names")
    seed: int = option(7, "seed")
    threads: int | None = option(None, "threads", hash=False)
    out: Path = option(Path("out"), "the folder to make")
    force: bool = option(False, "replace")


def toy(config: ToyConfig, pause: float = 0.0, each: int = 3) -> Path:
    with stage("toy", config, out=config.out, inputs={"data": config.data}, force=config.force) as run:
        if run.done:
            return run.out
        weights, first = np.zeros(50, np.float32), 0
        if run.resume is not None:
            weights, first = run.arrays["weights"], run.resume["step"]
        for step in range(first, config.steps):
            noise = np.random.Generator(np.random.Philox(key=[config.seed, step])).standard_normal(50).astype(np.float32)
            weights = weights + np.float32(config.rate) * noise
            run.log(step=step, norm=float(np.linalg.norm(weights)), odd=float("nan"))
            run.append("shards/train-00000.jsonl", f'{{"text": "document {step}"}}\n')
            run.time(seconds=time.perf_counter())
            if step == config.steps // 2:
                run.summary(halfway=step)
                write_json_atomic(run.work / "samples.json", {"step": step})
            if (step + 1) % each == 0:
                run.checkpoint({"step": step + 1}, {"weights": weights})
            time.sleep(pause)
        (run.work / "model").mkdir(exist_ok=True)
        (run.work / "model" / "weights.bin").write_bytes(weights.tobytes())
        run.summary(final=weights[0])
    return run.out


if __name__ == "__main__":
    toy(ToyConfig(out=Path(sys.argv[1]), steps=int(sys.argv[2])), pause=float(sys.argv[3]))
