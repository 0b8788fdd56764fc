"""Kill the dive at random moments, go on each time, and compare the finished folders with an uninterrupted run's, bit for bit.

    python dev/kill_dive.py --tier smoke --kills 10 --out killed --against uninterrupted

`--against` is made first if it does not exist. Exit code 1 and the list of differing stages if anything differs.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from freedive.runs import folder_hash


START = 1.0  # seconds until a dive that goes on has found its place


def dive(tier: str, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "freedive", "dive", "--tier", tier, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", default="smoke")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    began = time.perf_counter()
    if not (a.against / "dive.json").is_file() and dive(a.tier, a.against).wait() != 0:
        print("the uninterrupted dive failed")
        return 1
    whole = max(10.0, time.perf_counter() - began)
    rng, kills = random.Random(a.seed), 0
    for _ in range(a.kills):
        process = dive(a.tier, a.out)
        try:
            process.wait(timeout=rng.uniform(1.0, 2 * (0.9 * whole / max(1, a.kills) + START)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            print(f"kill {kills}: {', '.join(p.name.removesuffix('.partial') for p in a.out.glob('*.partial')) or 'between stages'}", flush=True)
        else:
            break
    last = dive(a.tier, a.out)
    _, errors = last.communicate()
    if last.returncode != 0:
        print(errors.decode()[-2000:])
        return 1
    stages = sorted(p.name for p in a.against.iterdir() if p.is_dir())
    different = [s for s in stages if folder_hash(a.against / s) != folder_hash(a.out / s)]
    print(f"killed {kills} times; {len(stages)} folders compared; different: {', '.join(different) or 'none'}")
    return 1 if different or kills == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
