"""Several who work on the slabs of a matrix together, as threads of this process instead of processes."""

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from eggs_ptp.core.slabs import Slabs


class Beside(Slabs):
    """One of `count`; `worked` counts the rows that it has worked on, `filled` those that it has come to have."""

    def __init__(self, rank: int, count: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.count = rank, count
        self.worked = self.filled = 0
        self._board, self._barrier = board, barrier

    def fill(self, over: Tensor, work: Callable[[slice], tuple[Tensor, ...]], *into: Tensor) -> None:
        def counted(rows: slice) -> tuple[Tensor, ...]:
            self.worked += rows.stop - rows.start
            return work(rows)

        self.filled += len(over)
        super().fill(over, counted, *into)

    def spread(self, over: Tensor, *parts: Tensor) -> None:
        for rank, theirs in enumerate(self._shown(parts)):
            for rows in self.slabs_of(over, rank) if rank != self.rank else ():
                for part, found in zip(parts, theirs, strict=True):
                    part[rows] = found[rows]
        self._barrier.wait()

    def agreed(self, tensor: Tensor) -> Tensor:
        found: Tensor = self._shown(tensor)[0].clone()
        self._barrier.wait()
        return found

    def _shown(self, mine: Any) -> list[Any]:
        self._board[self.rank] = mine
        self._barrier.wait()
        return list(self._board)


def side_by_side(count: int, work: Callable[[Beside], Any]) -> tuple[list[Any], list[Beside]]:
    """What each of `count` comes to by `work`, and all of them. One that fails ends all."""
    board, barrier = [None] * count, threading.Barrier(count, timeout=30)
    all_of_them = [Beside(rank, count, board, barrier) for rank in range(count)]
    found: list[Any] = [None] * count
    failed: list[BaseException] = []

    def run(one: Beside) -> None:
        try:
            found[one.rank] = work(one)
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(one,)) for one in all_of_them]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found, all_of_them
