"""Terminal output: results on stdout, progress and messages on stderr."""

import json
import math
import os
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

LINE_SECONDS = 15.0  # between two lines of progress where there is no terminal and steps are short
_BEFORE_BLOCKS = ("embedding", "order")  # stages of a run before its first block
_BETWEEN_COLUMNS = 3
_PIPE_WIDTH = 160  # rich takes 80 where there is no terminal, and would wrap the names of matrices


def console(*, stderr: bool = False) -> Console:
    """Return a rich console for stdout or stderr that prints text as it is, without markup."""
    rich_console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not rich_console.is_terminal and "COLUMNS" not in os.environ:
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

    Where it is wider than the terminal, heads take several lines and texts wrap between words. No word or number is
    cut: a table that is still too wide runs over the edge.

    Args:
        columns: Column heads; one that starts with `>` is right-aligned, for numbers.
        rows: The cells of each row.
    """
    output = console()
    cells = [list(row) for row in rows]
    heads = [column.removeprefix(">") for column in columns]
    texts = list(zip(heads, *cells, strict=True))
    needed = [max(_longest_word(text) for text in column) for column in texts]
    gaps = _BETWEEN_COLUMNS * (len(columns) - 1) + 2
    is_wide = sum(max(map(len, column)) for column in texts) + gaps > output.width
    output.width = max(output.width, sum(needed) + gaps)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column, (head, *below), width in zip(columns, texts, needed, strict=True):
        table.add_column(
            head.replace(" ", "\n") if is_wide and len(head) > max(map(len, below), default=0) else head,
            justify="right" if column.startswith(">") else "left",
            min_width=width,
        )
    for row in cells:
        table.add_row(*row)
    output.print(table)


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def peak_memory_text(peak: int, baseline: int) -> str:
    """Return the peak of a process as text, which names what it held before it began, such as imported libraries.

    Args:
        peak: Most bytes that the process has held.
        baseline: Bytes that it held when the work began.
    """
    return f"peak memory {format_bytes(peak)} ({format_bytes(baseline)} of it libraries)"


class Progress:
    """Show finished steps, the time left and the peak of memory on stderr.

    On a terminal this is a progress bar, elsewhere lines. Memory is the peak of this process, libraries included and
    memory-mapped files excluded, as in the record of a run; where torch uses a GPU, it is the peak of the GPU's memory.

    Args:
        title: What is running, such as `prune`.
        quiet: Show nothing.
        interval: Seconds between two lines where there is no terminal; 0 prints a line for every step.
    """

    def __init__(self, title: str, *, quiet: bool, interval: float = 0.0) -> None:
        from eggs_ptp.engine.resources import MemoryMonitor

        self._title = title
        self._quiet = quiet
        self._interval = interval
        self._console = console(stderr=True)
        self._start = time.perf_counter()
        self._last_line = self._start
        self._expected_end: float | None = None
        self._resumed_from = 0  # blocks that an earlier process has finished
        self._blocks_began = False
        self._estimate: float | None = None
        self._memory = MemoryMonitor()
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._memory.__enter__()
        self._start = self._last_line = time.perf_counter()
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
        self._memory.__exit__()
        if self._bar is not None:
            self._bar.stop()

    @property
    def is_bar(self) -> bool:
        """Whether a progress bar is drawn."""
        return self._bar is not None

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes at the peak of this process so far, and when the work began: imported libraries."""
        return self._memory.peak, self._memory.baseline

    def memory_text(self) -> str:
        """Return the peak of memory as text, that of the GPU first where torch uses one."""
        gpu = _gpu_peak()
        return (f"peak GPU memory {format_bytes(gpu)}, " if gpu else "") + peak_memory_text(*self.memory)

    def expect(self, seconds: float) -> None:
        """Take an estimate of the time of the whole run, which is shown until steps have been measured."""
        self._estimate = seconds

    def listen(self, event: "Event") -> None:
        """Show an event of a pruning run."""
        if event.kind == "stage":
            if not self._blocks_began and event.stage not in _BEFORE_BLOCKS:
                self._blocks_began = True
                self._start = time.perf_counter()  # what comes before the blocks says nothing of the time of a block
            self._update_bar(event.block, event.blocks, f"{self._title}: block {event.block + 1}, {event.stage}")
        elif event.kind == "block":
            self.count(event.block, event.blocks)
        elif event.kind == "remark":
            self._resumed_from = event.block
            print_line(event.stage + self._remaining_estimate(event), stderr=True)

    def count(self, done: int, total: int, description: str = "") -> None:
        """Show how many of all steps (blocks, windows, runs) are finished.

        Args:
            done: Finished steps.
            total: All steps.
            description: What has just been finished, for a line.
        """
        now = time.perf_counter()
        done_in_this_run = done - self._resumed_from
        self._expected_end = None
        if done_in_this_run > 0 and done < total:
            self._expected_end = now + (now - self._start) / done_in_this_run * (total - done)
        self._update_bar(done, total, self._title)
        if self._bar is None and not self._quiet and now - self._last_line >= self._interval:
            self._last_line = now
            steps = " ".join(filter(None, [f"{self._title}: {done}/{total}", description]))
            costs = [self.time_left(), f"peak memory {self._peak_text()}"]
            print_line(", ".join(filter(None, [steps, *costs])), stderr=True)

    def time_left(self) -> str:
        """Return the estimated time that is left, as text; empty while there is no estimate."""
        if self._expected_end is None:
            return ""
        return f"{format_duration(max(0.0, self._expected_end - time.perf_counter()))} left"

    def _remaining_estimate(self, event: "Event") -> str:
        """Return how long the blocks that remain take by the plan's estimate, where a run is resumed."""
        if not event.block or not self._estimate:
            return ""
        remaining = event.blocks - event.block
        return f"; {remaining} blocks remain, about {format_duration(self._estimate * remaining / event.blocks)}"

    def _peak_text(self) -> str:
        return format_bytes(_gpu_peak() or self._memory.peak)

    def _update_bar(self, done: int, total: int, description: str) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=done,
                total=total,
                description=description,
                time_left=self.time_left(),
                memory=f"peak {self._peak_text()}",
            )


def _gpu_peak() -> int:
    """Return the most bytes that torch has allocated on the GPU; 0 where it does not use one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_allocated())
