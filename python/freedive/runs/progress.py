"""Progress bars. They change nothing, and are silent if `progress.quiet` or standard error is not a terminal.

    for x in progress(iterable, total, "pretrain"): ...
    bar = progress.bar(total, "pretrain"); bar.advance(512, text="loss 2.31"); bar.close()

Bars of nested stages share one display, since a terminal has one. rich is imported when the first bar is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Bar:
    """One bar. Usable in a `with`; closing twice is fine."""

    def __init__(self, display: Any, task: Any):
        self._display, self._task = display, task

    def advance(self, n: float = 1, text: str | None = None) -> None:
        """n more done; `text` replaces what stands at the end of the line."""
        if self._display is not None:
            extra = {} if text is None else {"text": text}
            self._display.update(self._task, advance=n, **extra)

    def close(self) -> None:
        if self._display is not None:
            self._display = None
            progress._closed(self._task)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Progress:
    """The module's one instance is `progress`."""

    def __init__(self) -> None:
        self.quiet = False
        self._display: Any = None
        self._open = 0

    def __call__(self, iterable: Iterable[T], total: int | None = None, name: str = "") -> Iterator[T]:
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        with self.bar(total, name) as bar:
            for item in iterable:
                yield item
                bar.advance()

    def bar(self, total: float | None, name: str = "") -> Bar:
        """A bar of `total` units; None if the total is unknown."""
        if self.quiet or not sys.stderr.isatty():
            return Bar(None, None)
        if self._display is None:
            from rich import progress as rich
            from rich.console import Console

            self._display = rich.Progress(
                rich.TextColumn("{task.description}"),
                rich.BarColumn(bar_width=None),
                rich.MofNCompleteColumn(),
                rich.TimeRemainingColumn(),
                rich.TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
                refresh_per_second=4,
                expand=True,
            )
            self._display.start()
        self._open += 1
        return Bar(self._display, self._display.add_task(name, total=total, text=""))

    def _closed(self, task: Any) -> None:
        self._open -= 1
        self._display.stop_task(task)
        if self._open == 0:
            self._display.stop()
            self._display = None


progress = _Progress()
