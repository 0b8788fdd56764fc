"""`freedive demos`: what chapters 3 and 4 of the talk say of models, shown on one that was trained here, each claim with a number and a control.

One base model and one assistant for each seed; an arm teaches the assistant something, or only asks it. Every step is an artefact below OUT,
so an interrupted run goes on where it was. The figures go to OUT/demos.json and OUT/demos.html; --results FILE also appends them to a JSON
file, with command, date, machine and versions.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import resource
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from freedive.dive.found import jsonl
from freedive.dive.machine import machine
from freedive.inference.tools import Python
from freedive.runs import UserError, check_at_least, option, read_json, stage, write_json_atomic

from .arms import ARMS
from .report import write_report
from .room import TIERS, Figure, Room, shown


@dataclass(frozen=True)
class DemosConfig:
    """Hallucination, search, identity, tokens to think, counting, practice: measured on a model trained for it."""

    out: Path = option(Path("runs/demos"), "folder to write")
    only: tuple[str, ...] = option((), f"these demonstrations only: {', '.join(ARMS)}")
    tier: Literal["full", "smoke"] = option("full", "full: about an hour on 2 cores; smoke: a minute or two, to see that everything works, with figures that mean nothing")
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds; all of them for those marked so in the list (--dry-run), else the first")
    results: Path | None = option(None, "JSON file to append the figures to")
    threads: int | None = option(None, "CPU threads (default: all)")
    dry_run: bool = option(False, "list what would be done, and stop")


@dataclass(frozen=True)
class ArmConfig:
    """What the figures of an arm depend on."""

    out: Path
    arm: str
    tier: str
    seed: int


def run(c: DemosConfig) -> Path:
    """Run what is not finished; returns OUT. Raises UserError for demonstrations that are not known."""
    check_at_least(c, 1, "threads")
    if unknown := [name for name in c.only if name not in ARMS]:
        raise UserError(f"there is no demonstration {unknown[0]!r}", hint=f"demonstrations: {', '.join(ARMS)}")
    if not c.seeds or len(set(c.seeds)) != len(c.seeds) or min(c.seeds) < 0:
        raise UserError(f"seeds are {c.seeds}; they must be different and not negative", hint="--seeds 0 1 2")
    if c.results and c.results.exists() and not isinstance(read_json(c.results), list):
        raise UserError(f"{c.results} holds no list of results", hint="give another --results")
    chosen = c.only or tuple(ARMS)
    plan = [(name, seed) for seed in c.seeds for name in chosen if ARMS[name].every_seed or seed == c.seeds[0]]
    if c.dry_run:
        for name, seed in plan:
            print(f"{ARMS[name].section:10} seed {seed}  {name:9} {ARMS[name].title}")
        return c.out
    if any(ARMS[name].python for name in chosen):
        Python().close()  # UserError now, rather than after an hour
    if c.out.exists() and not c.out.is_dir():
        raise UserError(f"{c.out} is a file; --out must name a folder")
    c.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[int, Any]] = {name: {} for name in chosen}
    for name, seed in plan:
        found[name][seed] = _arm(c, name, seed)
    summary = [{"arm": name, "figures": over_seeds(by_seed.values()), "seeds": list(by_seed)} for name, by_seed in found.items()]
    write_json_atomic(c.out / "demos.json", {"tier": c.tier, "arms": summary})
    report = write_report(c.out, c.tier, summary)
    if c.results:
        _append(c, summary)
    _print(summary)
    print(f"\nthe report: {report}")
    return c.out


def _arm(c: DemosConfig, name: str, seed: int) -> dict[str, Any]:
    """Figures of one arm and seed: run, or read from where they are finished."""
    room = Room(c.out / f"seed-{seed}", TIERS[c.tier], seed, c.threads)
    out = c.out / "figures" / f"{name}-{seed}"
    print(f"\n== {ARMS[name].section} {ARMS[name].title} (seed {seed})", flush=True)
    began, cpu = time.perf_counter(), _cpu_seconds()
    with contextlib.redirect_stdout(io.StringIO()):  # what the stages say; their bars are drawn on stderr
        model = ARMS[name].begins(room)
    shared = _cpu_seconds() - cpu
    with stage("demos-arm", ArmConfig(out, name, c.tier, seed), out=out, inputs={"assistant": model}) as artefact:
        if not artefact.done:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    figures = [{**asdict(f), "met": f.met} for f in ARMS[name].run(room)]
                write_json_atomic(artefact.work / "figures.json", figures)
            finally:  # an arm that is stopped goes on later: its time is that of all attempts
                artefact.time(seconds=round(time.perf_counter() - began, 1), cpu_seconds=round(_cpu_seconds() - cpu - shared, 1), shared_cpu_seconds=round(shared, 1))
    print(f"   {time.perf_counter() - began:.0f} s", flush=True)
    return {"figures": read_json(out / "figures.json"), "times": _spent(out)}


def _spent(out: Path) -> dict[str, float]:
    """Seconds of an arm, over all its attempts."""
    rows = [row for row in jsonl(out / "timings.jsonl") if "cpu_seconds" in row]
    return {key: round(sum(row[key] for row in rows), 1) for key in ("seconds", "cpu_seconds", "shared_cpu_seconds")} if rows else {}


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def over_seeds(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each figure with its mean over the seeds and what every seed gave; the interval is that of a single seed, else the seeds' range."""
    results = list(results)
    merged = []
    for at, first in enumerate(results[0]["figures"]):
        every = [r["figures"][at] for r in results]
        values = [f["share"] for f in every]
        mean = sum(values) / len(values)
        interval = first["interval_95"] if len(every) == 1 else [min(values), max(values)]
        figure = Figure(first["name"], mean, interval, sum(f["n"] for f in every), first["target"], first["control"], first.get("unit", "share"))
        merged.append({**asdict(figure), "met": figure.met, "seeds": values})
    return merged


def _append(c: DemosConfig, summary: list[dict[str, Any]]) -> None:
    assert c.results is not None
    changed = [f for f in fields(c) if f.name not in ("out", "results", "threads") and getattr(c, f.name) != f.default]
    words = [f"--{f.name} {' '.join(map(str, v)) if isinstance(v := getattr(c, f.name), tuple) else v}" for f in changed]
    row = {"command": " ".join(["freedive demos", *words]), "date": datetime.date.today().isoformat(), "machine": machine(c.threads), "tier": c.tier,
           "times": {f"{a['arm']}-{s}": _spent(c.out / "figures" / f"{a['arm']}-{s}") for a in summary for s in a["seeds"]}, "arms": summary}  # fmt: skip
    c.results.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(c.results, [*(read_json(c.results) if c.results.exists() else []), row])


def _print(summary: list[dict[str, Any]]) -> None:
    for arm in summary:
        print(f"\n{ARMS[arm['arm']].section} {ARMS[arm['arm']].title}")
        for f in arm["figures"]:
            unit = f.get("unit", "share")
            span = "({} to {})".format(*(f"{x:.2f}" if unit == "times" else f"{100 * x:.1f}" for x in f["interval_95"])) if f["interval_95"] else ""
            verdict = "" if f["met"] is None else f"{f['target']}: {'reached' if f['met'] else 'NOT reached'}"
            print(f"  {shown(f['share'], unit):>12} {span:18} {f['name']}  {verdict}")
