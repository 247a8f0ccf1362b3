"""Slabs: rows of a matrix that are worked on by themselves, in one process or shared out over several."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

AT_ONCE = 1 << 22  # weights worked on at a time, as several times their memory is needed
_SLABS = 4  # or a multiple of that: 2 and 4 processes have as much to do each
_MOST_ROWS = 256  # of a slab: more slabs serve more processes, and matrix products are no faster with more rows
_LEAST_ROWS, _LEAST = 32, 1 << 15  # rows and weights of a slab: with less, calls take longer than their numbers


def cut(rows: int, columns: int) -> list[slice]:
    """Slabs of a matrix (rows, columns), as even as can be; whole if it is small.

    They depend on nothing else, so that whoever works on them comes to the same bits.
    """
    most = max(1, min(max(_MOST_ROWS, _LEAST // columns), AT_ONCE // columns))
    count = min(rows, _SLABS * -(-rows // (_SLABS * most)))
    if count == _SLABS and (rows < count * _LEAST_ROWS or rows * columns < count * _LEAST):
        count = 1
    ends = [rows * slab // count for slab in range(count + 1)]
    return [slice(*both) for both in pairwise(ends)]


def quarters(rows: int, columns: int) -> list[slice]:
    """The first slab of every quarter of a matrix: all of them up to 1024 rows, a sample of it beyond.

    It is shared out as evenly as the whole is.
    """
    slabs = cut(rows, columns)
    return slabs[:: max(1, len(slabs) // _SLABS)]


class Slabs:
    """One process that works on all slabs of a matrix; its subclass is one of `count` who do so together.

    Those all call the same in turn, with the same numbers, and each comes to have what the others have found.
    """

    rank, count = 0, 1

    def slabs_of(self, over: Tensor, rank: int) -> list[slice]:
        """The slabs of `over` (rows, columns) that one of the `count` works on; they lie together."""
        slabs = cut(*over.shape)
        first, last = (len(slabs) * end // self.count for end in (rank, rank + 1))
        return slabs[first:last]

    def fill(self, over: Tensor, work: Callable[[slice], tuple[Tensor, ...]], *into: Tensor) -> None:
        """Fill each of `into` (rows, ...) with what `work` makes of the same rows of `over`, (rows, columns)."""
        for rows in self.slabs_of(over, self.rank):
            for whole, part in zip(into, work(rows), strict=True):
                whole[rows] = part
        self.spread(over, *into)

    def spread(self, over: Tensor, *parts: Tensor) -> None:
        """Have all rows of each of `parts`, which so far have those of the slabs of `over` that are worked on here."""

    def agreed(self, tensor: Tensor) -> Tensor:
        """What the first of all has: rounding may have led others elsewhere, on other processors."""
        return tensor


ALONE = Slabs()
