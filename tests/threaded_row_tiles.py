"""Row tiles divided among threads of this process, in place of the processes of a group."""

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from eggs_ptp.core.row_tiles import RowTiles


class ThreadedRowTiles(RowTiles):
    """The row tiles of one thread of `world_size`.

    Attributes:
        computed: Number of rows that this thread has computed.
        filled: Number of rows that it has received or computed.
    """

    def __init__(self, rank: int, world_size: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.world_size = world_size
        self.computed = 0
        self.filled = 0
        self._slots = slots
        self._barrier = barrier

    def fill(self, matrix: Tensor, compute: Callable[[slice], tuple[Tensor, ...]], *outputs: Tensor) -> None:
        def counting_compute(rows: slice) -> tuple[Tensor, ...]:
            self.computed += rows.stop - rows.start
            return compute(rows)

        self.filled += len(matrix)
        super().fill(matrix, counting_compute, *outputs)

    def all_gather_rows(self, matrix: Tensor, *outputs: Tensor) -> None:
        for rank, rank_outputs in enumerate(self._all_gather(outputs)):
            if rank == self.rank:
                continue
            for rows in self.tiles_of(matrix, rank):
                for output, rank_output in zip(outputs, rank_outputs, strict=True):
                    output[rows] = rank_output[rows]
        self._barrier.wait()

    def broadcast(self, tensor: Tensor) -> Tensor:
        first: Tensor = self._all_gather(tensor)[0].clone()
        self._barrier.wait()
        return first

    def _all_gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait()
        return list(self._slots)


def run_threads(world_size: int, work: Callable[[ThreadedRowTiles], Any]) -> tuple[list[Any], list[ThreadedRowTiles]]:
    """Call `work` in each of `world_size` threads with the thread's row tiles; an error in one ends all.

    Returns:
        The results, and the row tiles.
    """
    slots = [None] * world_size
    barrier = threading.Barrier(world_size, timeout=300)
    row_tiles = [ThreadedRowTiles(rank, world_size, slots, barrier) for rank in range(world_size)]
    results: list[Any] = [None] * world_size
    errors: list[BaseException] = []

    def run(tiles: ThreadedRowTiles) -> None:
        try:
            results[tiles.rank] = work(tiles)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(tiles,)) for tiles in row_tiles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results, row_tiles
