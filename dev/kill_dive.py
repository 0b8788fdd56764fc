"""Kill the dive at random moments, in every stage, go on each time, and compare the finished folders with an uninterrupted run's, bit for bit.

    python dev/kill_dive.py --tier smoke --kills 10 --out killed --against uninterrupted

`--against` is made first if it does not exist. Exit code 1 and the list of differing stages if anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from freedive.runs import folder_hash


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
    if not (a.against / "dive.json").is_file() and dive(a.tier, a.against).wait() != 0:
        print("the uninterrupted dive failed")
        return 1
    lines = [json.loads(line) for line in (a.against / "timings.jsonl").read_text().splitlines()]
    seconds = {line["stage"]: line["seconds"] for line in lines if "stage" in line}
    rng, kills, stages = random.Random(a.seed), 0, list(seconds)
    for number in range(a.kills):
        stage = stages[number * len(stages) // a.kills]  # every stage has its turn
        process = dive(a.tier, a.out)
        while process.poll() is None and not any((a.out / name).exists() for name in (f"{stage}.partial", stage)):
            time.sleep(0.01)
        try:
            process.wait(timeout=rng.uniform(0, seconds[stage]))
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
    folders = sorted(p.name for p in a.against.iterdir() if p.is_dir())
    different = [s for s in folders if folder_hash(a.against / s) != folder_hash(a.out / s)]
    print(f"killed {kills} times; {len(folders)} folders compared; different: {', '.join(different) or 'none'}")
    return 1 if different or kills == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
