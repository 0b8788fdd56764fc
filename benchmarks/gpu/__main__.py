"""freedive on a GPU beside torch, in one run on one card.

    python benchmarks/gpu --minutes 6                      # the most telling cases first; ends in time
    python benchmarks/gpu --only attention train           # cases whose names hold one of these
    python benchmarks/gpu --dry-run                        # everything, tiny, without a GPU: torch on the CPU, our device emulated or the CPU
    python benchmarks/gpu --ladder benchmarks/results/gpu-nvidia-h100-80gb-hbm3.json    # expected and measured, every variant of every op
    python benchmarks/gpu --summary FILE                   # the floors and aims again

torch is FREEDIVE_TORCH_PYTHON's, or this Python's own; without one ours is measured alone. Each side is a process; they take turns, `--rounds` times a case, on
random numbers, with arguments beyond the L2 cache, and time themselves by CUDA events. Medians, least and most; `ratio` is the best peer's time over ours,
`share` ours of the limit measured in the same turns (copies: bytes read and written; a product of 8192^3 in bfloat16 by torch). A sample of what every variant
computed is compared with the CPU before it is timed. One JSON line a row; all of them with the table of floors and aims go to --out.

Ours takes and gives float32 and rounds operands to bfloat16 within what is timed (the weight of a forward product was packed before); torch's operands and
results are bfloat16 already. Nothing is changed on the card: clocks are read, not set.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import ladder  # noqa: E402
import summary  # noqa: E402
from cases import FULL, TINY, Case, all_cases  # noqa: E402
from measure import Run, card  # noqa: E402
from sides import Lost  # noqa: E402

RESULTS = HERE.parent / "results"
COMPILES = 90.0  # seconds that a case which compiles a model should find left


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6, help="no case begins after so many")
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names hold one of these")
    parser.add_argument("--rounds", type=int, help="turns of each case (default 5; 2 in a dry run)")
    parser.add_argument("--device", default=None, help="ours: cuda, cuda-emu or cpu (default cuda; in a dry run cuda-emu where that is built, else cpu)")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, torch on the CPU: tries the program, measures nothing")
    parser.add_argument("--out", type=Path, help="the JSON of all rows (default benchmarks/results/gpu-CARD.json; in a dry run none)")
    parser.add_argument("--list", action="store_true", help="the cases, in order")
    parser.add_argument("--ladder", nargs="?", const="", metavar="FILE", help="print the ladder of variants with what a results file measured")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print the table of floors and aims of a results file")
    return parser.parse_args()


def read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        found = found.get("benchmarks", found)
        return {"rows": found["rows"], "about": found["about"]} | found
    except (OSError, ValueError, KeyError) as e:
        sys.exit(f"{path} is no results file of benchmarks/gpu or dev/gpu_check: {type(e).__name__}")


def device_here(wanted: str | None, dry_run: bool) -> str:
    from freedive import _core

    device = wanted or ("cuda" if not dry_run else "cuda-emu" if _core.device_error("cuda-emu") is None else "cpu")
    if (why := _core.device_error(device)) is not None:
        sys.exit(f"{why}; without a GPU: --dry-run")
    return device


def run(o: argparse.Namespace, cases: list[Case], device: str) -> dict[str, Any]:
    began = time.monotonic()
    tiny = o.dry_run
    shared: dict[str, Any] = {"device": device} | ({"dry_run": True} if tiny else {"gpu": card()})
    bench = Run(device, "cpu" if tiny else "cuda", o.rounds or (2 if tiny else 5), 1e-4 if tiny else 0.03, 1 << 20 if tiny else 1 << 30, 64 if tiny else 8192, shared)
    try:
        about = {"freedive": bench.our.ask(do="about"), "torch": bench.torch.ask(do="about") if bench.torch else None}
    except Lost:
        bench.stop()
        raise
    bench.common["versions"] = {"torch": about["torch"], "python": about["freedive"]["python"]}
    rows, left_out = [], []
    try:
        for case in cases:
            left = 60 * o.minutes - (time.monotonic() - began)
            if left < (COMPILES if case.kind in ("train", "decode") and not tiny else 0):
                left_out.append(case.name)
                continue
            for row in bench.rows(case):
                rows.append(row)
                print(json.dumps(row), flush=True)
    finally:
        bench.stop()
    return {"device": device, "gpu": shared.get("gpu"), "date": time.strftime("%Y-%m-%d", time.gmtime()), "dry_run": tiny, "about": about, "seconds": round(time.monotonic() - began, 1),
            "left_out": left_out, "summary": summary.verdicts(rows), "rows": rows}  # fmt: skip


def main() -> int:
    o = options()
    if o.ladder is not None:
        found = read(Path(o.ladder)) if o.ladder else None
        variants = found["about"]["freedive"]["variants"] if found else ladder.variants_here()
        if variants is None:
            sys.exit("neither the device cuda nor cuda-emu is here to tell its variants (csrc/emulation/README.md), and no results file was given")
        print(ladder.table(found, variants))
        return 0
    if o.summary is not None:
        found = read(o.summary)
        print(summary.table(summary.verdicts(found["rows"]), found.get("dry_run", False)))
        return 0
    cases = [case for case in all_cases(TINY if o.dry_run else FULL) if not o.only or any(part in case.name for part in o.only)]
    if not cases:
        sys.exit(f"no case holds {' or '.join(o.only)} in its name; --list names all")
    if o.list:
        print(*(case.name for case in cases), sep="\n")
        return 0
    device = device_here(o.device, o.dry_run)
    try:
        results = run(o, cases, device)
    except Lost as lost:
        sys.exit(f"nothing can be measured: {lost}")
    print(summary.table(results["summary"], o.dry_run))
    if results["left_out"]:
        print(f"no time left for {len(results['left_out'])} of {len(cases)} cases: {', '.join(results['left_out'])}")
    if o.out is not None or not o.dry_run:
        card = re.sub(r"\W+", "-", results["gpu"] or device).strip("-").lower()
        path = o.out or RESULTS / f"gpu-{card}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(path)
    return 0 if any("variant" in row for row in results["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
