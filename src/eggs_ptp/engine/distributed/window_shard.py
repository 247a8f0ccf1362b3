"""How calibration windows are divided over processes, reduction chunks and batches."""

from collections.abc import Iterator
from dataclasses import dataclass

from eggs_ptp.engine.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from eggs_ptp.errors import CalibrationError

REDUCTION_CHUNKS = 4  # statistics are summed in so many chunks, so that 1, 2, 3 and 4 processes give the same bits


@dataclass(frozen=True)
class WindowShard:
    """The calibration windows of one process.

    Statistics are summed chunk by chunk, and the chunks are added up in their order; no batch crosses the end of a
    chunk. So a sum has the same bits however the chunks are divided over processes.

    Args:
        windows: Number of windows of all processes.
        batch_windows: Windows that run through a block at once.
        chunks: This process's reduction chunks as (first, end) window indices.
        group: The processes that share the windows.
    """

    windows: int
    batch_windows: int
    chunks: tuple[tuple[int, int], ...]
    group: ProcessGroup = SINGLE_PROCESS

    @classmethod
    def of(cls, windows: int, batch_windows: int, group: ProcessGroup = SINGLE_PROCESS) -> "WindowShard":
        """Divide windows into 4 chunks, or one per process if there are more, contiguous and as even as possible.

        Raises:
            CalibrationError: several processes and fewer windows than chunks.
        """
        count = max(REDUCTION_CHUNKS, group.world_size)
        if windows < count and group.world_size > 1:
            raise CalibrationError(
                f"{windows} calibration windows cannot be divided over {group.world_size} processes, which need at "
                f"least {count}; raise --nsamples, or start fewer processes"
            )
        ends = [chunk * windows // count for chunk in range(count + 1)]
        first, last = (rank * count // group.world_size for rank in (group.rank, group.rank + 1))
        chunks = tuple(zip(ends[first:last], ends[first + 1 : last + 1], strict=True))
        return cls(windows, batch_windows, chunks, group)

    @classmethod
    def single(cls, windows: int, batch_windows: int) -> "WindowShard":
        """One process, one chunk."""
        return cls(windows, batch_windows, ((0, windows),))

    @property
    def local(self) -> slice:
        """This process's windows among those of all."""
        return slice(self.chunks[0][0], self.chunks[-1][1])

    @property
    def batch_sizes(self) -> list[int]:
        """Windows in each batch of this process."""
        return [batch.stop - batch.start for chunk in self for batch in chunk]

    @property
    def batches(self) -> Iterator[slice]:
        """All batches of this process, as slices of its windows."""
        return (batch for chunk in self for batch in chunk)

    def __iter__(self) -> Iterator[list[slice]]:
        """Yield the batches of each non-empty chunk, as slices of this process's windows."""
        for first, end in self.chunks:
            if first < end:
                stop = end - self.local.start
                starts = range(first - self.local.start, stop, self.batch_windows)
                yield [slice(start, min(start + self.batch_windows, stop)) for start in starts]

    def strided(self, stride: int) -> tuple[slice, "WindowShard"]:
        """Take every `stride`-th window, counted over all processes.

        Returns:
            Which of this process's windows these are, and their shard.
        """
        chunks = tuple((-(-first // stride), -(-end // stride)) for first, end in self.chunks)
        windows = slice(chunks[0][0] * stride - self.local.start, None, stride)
        return windows, WindowShard(-(-self.windows // stride), self.batch_windows, chunks, self.group)
