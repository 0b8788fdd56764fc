"""`freedive label import FILE --format ...`: a folder of labels out of Label Studio's or Argilla's files, or out of rows that have an order
(an OASST file's ranks, chosen and rejected), which are then the judgements of one labeller, `file`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from freedive.data.sources import is_remote
from freedive.runs import UserError, option
from freedive.sft.data import DataSource, iter_data

from . import argilla, label_studio
from .items import Item, items
from .store import Judgement, append, make


@dataclass(frozen=True)
class ImportConfig:
    """A folder of labels out of another program's files, or of rows with an order."""

    file: str = option(help="Label Studio's JSON, a folder of Argilla's, or rows: .jsonl(.gz), .parquet", positional=True)
    format: Literal["label-studio", "argilla", "rows"] = option("rows", "rows: as freedive sft reads them, with chosen and rejected, ranks, or as OASST trees")
    out: Path = option(Path("runs/labels"), "folder to be made")
    labeller: str = option("file", "who judged, where the file does not say (rows)")
    seed: int = option(0, "of the order in which answers are shown to whoever goes on with it")


def run(c: ImportConfig) -> int:
    """Make the folder, whole or not at all."""
    if c.format == "rows":
        found, judgements = from_rows(c.file, c.labeller)
    else:
        path = Path(c.file)
        if not path.exists():
            raise UserError(f"{path} does not exist", hint="give the file or folder that was exported")
        found, judgements = (label_studio if c.format == "label-studio" else argilla).read(path)
    if not found:
        raise UserError(f"{c.file} holds nothing to import", hint="known formats: label-studio, argilla, rows")
    write(c.out, found, judgements, seed=c.seed, source={"name": Path(c.file).name, "format": c.format})
    told = Counter(j.labeller for j in judgements)
    names = ", ".join(f"{name} {count:,}" for name, count in told.most_common(5)) + (", ..." if len(told) > 5 else "")
    print(f"{c.out}: {len(found):,} prompts, {sum(len(i.answers) for i in found):,} answers, {len(judgements):,} judgements ({names or 'none'})")
    return 0


def write(folder: Path, found: list[Item], judgements: list[Judgement], **head: object) -> None:
    """A new folder with judgements in it."""
    make(folder, found, **head)  # type: ignore[arg-type]
    for j in judgements:
        append(folder / "judgements" / f"{j.labeller}.jsonl", asdict(j))


def read_items(file: str) -> tuple[list[Item], list[str]]:
    """(items, what is wrong with rows) of a file of rows. UserError for what cannot be read at all."""
    if not is_remote(file) and not Path(file).exists():
        raise UserError(f"{file} does not exist", hint="give JSON Lines or parquet with prompts")
    places: list[tuple[str, int]] = []

    def numbered() -> Iterator[tuple[int, dict[str, Any]]]:
        for name, line, row in iter_data(DataSource(file)):
            places.append((name, line))
            yield len(places) - 1, row

    out: list[Item] = []
    wrong: list[str] = []
    for at, told in items(numbered()):
        if isinstance(told, str):
            wrong.append(f"{places[at][0]}, line {places[at][1]}: {told}")
        else:
            out += told
    return out, wrong


def from_rows(file: str, labeller: str) -> tuple[list[Item], list[Judgement]]:
    """Items, and the order that the file has of each. UserError for a row in no known form, and for a file without any order."""
    found, wrong = read_items(file)
    if wrong:
        raise UserError(wrong[0] + (f" (and {len(wrong) - 1:,} more rows with problems)" if wrong[1:] else ""))
    judged = [Judgement(i.id, labeller, ranks=i.ranks, order=[a.id for a in i.answers]) for i in found if i.ranks]
    if not judged:
        raise UserError(f"{file} holds no order of answers", hint="to judge its prompts: freedive label FILE --out FOLDER")
    return [replace(i, ranks={}) for i in found if i.ranks], judged  # the order is the labeller's now, and not once more the file's
