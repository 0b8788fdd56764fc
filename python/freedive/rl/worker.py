"""The child of workers.py: `python -m freedive.rl.worker NAME`. One JSON line in, one JSON line out, until its input ends.

What the user's function prints goes to standard error; it cannot disturb the answers. The kernel kills the child when its parent dies.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

from freedive.runs import UserError, find_function

from .adapters import adapted
from .rewards import BUILT_IN, call


def main(name: str) -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a function that hangs must not outlive the run
    except (OSError, AttributeError):
        pass

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        reward = adapted(find_function(name, BUILT_IN, "reward"))
    except UserError as error:
        say({"error": error.message, "hint": error.hint})
        return 2
    say({"ready": True})
    label = getattr(reward, "__name__", "reward")
    for line in sys.stdin:
        job = json.loads(line)
        noted: dict[str, list[float]] = {}
        columns = {**job["columns"], "log_metric": lambda key, value: noted.setdefault(str(key), []).append(float(value)), "log_extra": lambda *a, **k: None,
                   "trainer_state": None}  # fmt: skip
        try:
            values = call(label, reward, job["prompts"], job["completions"], job["ids"], columns)
            say({"values": [None if v != v else v for v in values], "metrics": noted})
        except UserError as error:
            say({"error": error.message, "hint": error.hint})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
