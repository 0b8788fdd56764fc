"""`freedive sft check`: what is in files of conversations, and what is wrong with them; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from freedive.inference import load_tokenizer
from freedive.runs import UserError, check_at_least, option

from .data import parse_data, read_data


@dataclass(frozen=True)
class CheckConfig:
    """Check conversations before training on them."""

    data: list[str] = option(help="files, folders or addresses of conversations, as for freedive sft", positional=True)
    model: Path = option(help="the model whose tokenizer and chat form they are for")
    context: int = option(256, "conversations longer than this count as too long")


def run(c: CheckConfig) -> int:
    """Print a report of each file; exit code 2 if a row has a problem."""
    check_at_least(c, 1, "context")
    tok, wrong = load_tokenizer(c.model), 0
    for data in parse_data(c.data):
        read = read_data(data, tok, c.context)
        print(read.report)
        wrong += read.report.n_problems
        for problem in read.problems:
            print(f"  {problem}")
        if read.report.n_problems > len(read.problems):
            print(f"  and {read.report.n_problems - len(read.problems):,} more rows with problems")
        if not read.report.kept and not read.problems:
            raise UserError(f"{data.path} gives no conversation to train on", hint="raise --context, or give other data")
    if wrong:
        raise UserError(f"{wrong:,} rows have problems", hint="mend or remove them: freedive sft stops at the first")
    return 0
