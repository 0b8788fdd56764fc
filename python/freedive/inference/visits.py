"""Several tokens of every decoding row between two looks of Python (a visit).

The device knows stop ids and limits, so it sees by itself who has stopped, and does no more for him. Of a device with a queue of its own the next visit is asked for
before the last is looked at: what it begins from never leaves the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .block_manager import BLOCK
from .scheduler import Request

if TYPE_CHECKING:
    from .loop import Loop


@dataclass(eq=False)
class Visit:
    """Steps of decoding that the model has been asked for; their tokens come when somebody waits."""

    steps: Any  # of the core
    rows: np.ndarray
    number: int  # of steps
    whole: bool = True  # no row has been given up since: it may go on


def ahead(loop: Loop) -> int:
    """How many tokens each decoding row may sample before anybody looks. One where a request needs logits or text after each (grammar, stop
    strings, logprobs, ..), or reads its prompt; else no more than one of the rows may want, and the blocks all have or can have allow."""
    live = loop.live
    if loop.steps == 1 or not len(live) or loop.scheduler.prefilling or loop.special[live].any():
        return 1
    steps = min(loop.steps, int((loop.limit[live] - loop.length[live]).max()))
    if (short := _provide(loop, steps)) is not None:
        steps = int((loop.blocks[short] * BLOCK - loop.length[short]).min()) + 1
    return steps


def _provide(loop: Loop, steps: int) -> np.ndarray | None:
    """Blocks for so many tokens more of every decoding row; None, or the rows for which there are none left."""
    live = loop.live
    needed = -(-np.minimum(loop.length[live] - 1 + steps, loop.limit[live] - 1) // BLOCK)  # nobody asks for keys and values of the last
    for row, blocks in zip(live.tolist(), needed.tolist()):
        while loop.blocks[row] < blocks and loop._add_block(loop.at[row]):
            pass
    loop.live_table = loop.table[live]
    short = live[loop.blocks[live] < needed]
    return short if len(short) else None


def look(loop: Loop) -> list[Request]:
    """At the tokens of the visit that is due; the next, if there can be one, runs meanwhile."""
    visit = loop.visit
    assert visit is not None
    loop.visit = _go_on(loop, visit)
    loop.stats.calls += loop.visit is not None
    return _append_steps(loop, visit.rows, *visit.steps.wait())


def _go_on(loop: Loop, visit: Visit) -> Visit | None:
    """The same rows' next steps, asked of a device before anybody has seen these: where they stop, the device sees itself. None where somebody waits
    to come in, a row was given up, half of them have ended, all end in this visit, guesses are made, or blocks are short."""
    live, steps = loop.live, loop.steps
    if loop.model.device == "cpu" or loop.scheduler.waiting or loop._drafting or not visit.whole or visit.number != steps:
        return None
    if not len(live) or 2 * len(live) < len(visit.rows) or (loop.limit[live] - loop.length[live]).max() <= steps or _provide(loop, 2 * steps) is not None:
        return None
    more = loop.model.decode_on(visit.steps, loop.table[visit.rows])
    return None if more is None else Visit(more, visit.rows, steps)


def _append_steps(loop: Loop, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> list[Request]:
    """Several tokens (steps, rows), -1 behind a row's last, for those of the rows that decode still."""
    going = np.isin(rows, loop.live)
    rows, tokens, logprobs = rows[going], tokens[:, going], logprobs[:, going]
    drawn = tokens >= 0
    count, begin = drawn.sum(axis=0), loop.length[rows]
    row_of, at = np.broadcast_to(rows, tokens.shape)[drawn], (begin + np.arange(len(tokens))[:, None])[drawn]
    loop.ids[row_of, at], loop.logprobs[row_of, at] = tokens[drawn], logprobs[drawn]
    loop.length[rows] = begin + count
    loop.stats.sampled_tokens += int(count.sum())
    stopped = (loop.stops[rows] == loop.ids[rows, begin + count - 1][:, None]).any(axis=1)
    over = stopped | (loop.length[rows] >= loop.limit[rows])
    if not over.any():
        return []
    loop._decode_rows(rows[~over])
    ended = sorted(zip(count[over].tolist(), rows[over].tolist(), stopped[over].tolist()))  # in the order they ended in
    return [loop._finish(loop.at[row], stop) for _, row, stop in ended]
