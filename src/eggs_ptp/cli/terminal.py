"""What verbs print: results on stdout, progress and remarks on stderr."""

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from eggs_ptp.report.words import seconds_text as seconds_text

if TYPE_CHECKING:
    from eggs_ptp.engine.event import Event

_PIPE_WIDTH = 160  # rich takes 80 where there is no terminal, and would cut names of matrices


def console(*, stderr: bool = False) -> Console:
    """Results go to stdout; progress and remarks to stderr, so that stdout can be piped on."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = max(made.width, _PIPE_WIDTH)
    return made


def line(text: str, *, stderr: bool = False, style: str | None = None) -> None:
    """Print text, wrapped between words on a terminal and not at all elsewhere."""
    where = console(stderr=stderr)
    where.print(text, soft_wrap=not where.is_terminal, style=style)


def print_json(data: Any) -> None:
    """Print one JSON document; numbers that JSON cannot say (NaN, infinity) become null."""
    sys.stdout.write(json.dumps(_plain(data), indent=2, allow_nan=False) + "\n")


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; a column whose head starts with `>` holds numbers and is set flush right."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*row)
    console().print(made)


def bytes_text(count: float) -> str:
    """Decimal units: `812 MB`, `1.4 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def memory_now() -> int:
    """Bytes in use: of the GPU where torch uses one, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)


class Progress:
    """Blocks done, time left and memory, on stderr: a bar on a terminal, else a line a block; nothing when quiet."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self._title, self._quiet = title, quiet
        self._console = console(stderr=True)
        self._start = time.perf_counter()
        self._end: float | None = None  # when it should be over
        self._before = 0  # blocks that an earlier process has finished
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        if not self._quiet and self._console.is_terminal:
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[left]}"),
                progress.TextColumn("{task.fields[memory]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(self._title, total=None, left="", memory="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def is_bar(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._bar is not None

    def listen(self, event: "Event") -> None:
        """Follow a pruning run."""
        if event.kind == "stage":
            self._show(event.block, event.blocks, f"{self._title}: block {event.block + 1}, {event.stage}")
        elif event.kind == "block":
            self.count(event.block, event.blocks)
        elif event.kind == "remark":
            self._before = event.block
            line(event.stage, stderr=True)

    def count(self, done: int, total: int) -> None:
        """Say that so many of all blocks, or windows, are finished."""
        now = time.perf_counter()
        here = done - self._before
        self._end = now + (now - self._start) / here * (total - done) if here > 0 and done < total else None
        self._show(done, total, self._title)
        if self._bar is None and not self._quiet:
            line(f"{self._title}: {done}/{total}, {', '.join(filter(None, self._costs()))}", stderr=True)

    def _show(self, done: int, total: int, what: str) -> None:
        if self._bar is not None:
            left, memory = self._costs()
            self._bar.update(self._task, completed=done, total=total, description=what, left=left, memory=memory)

    def _costs(self) -> tuple[str, str]:
        left = "" if self._end is None else f"{seconds_text(max(0.0, self._end - time.perf_counter()))} left"
        return left, bytes_text(memory_now())
