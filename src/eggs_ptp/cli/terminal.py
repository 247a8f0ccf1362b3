"""Terminal output: results on stdout, progress and messages on stderr."""

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

from eggs_ptp.report.number_format import format_bytes as format_bytes
from eggs_ptp.report.number_format import format_duration as format_duration

if TYPE_CHECKING:
    from eggs_ptp.engine.event import Event

_PIPE_WIDTH = 160  # rich takes 80 where there is no terminal, and would wrap the names of matrices


def console(*, stderr: bool = False) -> Console:
    """Return a rich console for stdout or stderr that prints text as it is, without markup."""
    rich_console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not rich_console.is_terminal:
        rich_console.width = max(rich_console.width, _PIPE_WIDTH)
    return rich_console


def print_line(text: str, *, stderr: bool = False, style: str | None = None) -> None:
    """Print text, wrapped between words on a terminal and not wrapped elsewhere."""
    output = console(stderr=stderr)
    output.print(text, soft_wrap=not output.is_terminal, style=style)


def print_json(data: Any) -> None:
    """Print one JSON document; NaN and infinity, which JSON does not have, become null."""
    sys.stdout.write(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table.

    Args:
        columns: Column heads; one that starts with `>` is right-aligned, for numbers.
        rows: The cells of each row.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    console().print(table)


def memory_in_use() -> int:
    """Return the bytes in use: of the GPU where torch uses one, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)


class Progress:
    """Show finished blocks, the time left and the memory in use on stderr.

    On a terminal this is a progress bar, elsewhere one line per block.

    Args:
        title: What is running, such as `prune`.
        quiet: Show nothing.
    """

    def __init__(self, title: str, *, quiet: bool) -> None:
        self._title = title
        self._quiet = quiet
        self._console = console(stderr=True)
        self._start = time.perf_counter()
        self._expected_end: float | None = None
        self._resumed_from = 0  # blocks that an earlier process has finished
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        if not self._quiet and self._console.is_terminal:
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[time_left]}"),
                progress.TextColumn("{task.fields[memory]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(self._title, total=None, time_left="", memory="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def is_bar(self) -> bool:
        """Whether a progress bar is drawn."""
        return self._bar is not None

    def listen(self, event: "Event") -> None:
        """Show an event of a pruning run."""
        if event.kind == "stage":
            self._update_bar(event.block, event.blocks, f"{self._title}: block {event.block + 1}, {event.stage}")
        elif event.kind == "block":
            self.count(event.block, event.blocks)
        elif event.kind == "remark":
            self._resumed_from = event.block
            print_line(event.stage, stderr=True)

    def count(self, done: int, total: int) -> None:
        """Show how many of all steps (blocks or windows) are finished."""
        now = time.perf_counter()
        done_in_this_run = done - self._resumed_from
        self._expected_end = None
        if done_in_this_run > 0 and done < total:
            self._expected_end = now + (now - self._start) / done_in_this_run * (total - done)
        self._update_bar(done, total, self._title)
        if self._bar is None and not self._quiet:
            costs = ", ".join(filter(None, [self.time_left(), format_bytes(memory_in_use())]))
            print_line(f"{self._title}: {done}/{total}, {costs}", stderr=True)

    def time_left(self) -> str:
        """Return the estimated time that is left, as text; empty while there is no estimate."""
        if self._expected_end is None:
            return ""
        return f"{format_duration(max(0.0, self._expected_end - time.perf_counter()))} left"

    def _update_bar(self, done: int, total: int, description: str) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=done,
                total=total,
                description=description,
                time_left=self.time_left(),
                memory=format_bytes(memory_in_use()),
            )
