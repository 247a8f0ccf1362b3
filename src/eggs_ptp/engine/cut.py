"""Cut: how calibration windows are shared out over ranks, and in which pieces they run."""

from collections.abc import Iterator
from dataclasses import dataclass

from eggs_ptp.engine.ranks import ALONE, Ranks
from eggs_ptp.errors import CalibrationError

LEAVES = 4  # of which the sums are made, whoever makes them: so 1, 2, 3 and 4 processes add up the same


@dataclass(frozen=True)
class Cut:
    """The windows of one rank: of all `windows` those of its `leaves` (first, end), run `at_once` at a time.

    Sums are taken leaf by leaf and then added up in the order of the leaves, and no batch reaches over the end of a
    leaf. So a sum is the same, bit for bit, however the leaves are shared out.
    """

    windows: int
    at_once: int
    leaves: tuple[tuple[int, int], ...]
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, windows: int, at_once: int, ranks: Ranks = ALONE) -> "Cut":
        """Share windows out: 4 leaves, or one a rank where there are more ranks, contiguous and as even as can be.

        Raises:
            CalibrationError: fewer windows than leaves, for more than one rank.
        """
        count = max(LEAVES, ranks.count)
        if windows < count and ranks.count > 1:
            raise CalibrationError(
                f"{windows} calibration windows cannot be shared out over {ranks.count} processes, which need at least "
                f"{count}; raise --nsamples, or start fewer processes"
            )
        ends = [leaf * windows // count for leaf in range(count + 1)]
        first, last = (rank * count // ranks.count for rank in (ranks.rank, ranks.rank + 1))
        return cls(windows, at_once, tuple(zip(ends[first:last], ends[first + 1 : last + 1], strict=True)), ranks)

    @classmethod
    def whole(cls, windows: int, at_once: int) -> "Cut":
        """One process, one leaf."""
        return cls(windows, at_once, ((0, windows),))

    @property
    def mine(self) -> slice:
        """This rank's windows among all."""
        return slice(self.leaves[0][0], self.leaves[-1][1])

    @property
    def sizes(self) -> list[int]:
        """Windows in each batch of this rank."""
        return [windows.stop - windows.start for leaf in self for windows in leaf]

    def __iter__(self) -> Iterator[list[slice]]:
        """The batches of each leaf that has windows, by their places among this rank's windows."""
        for first, end in self.leaves:
            if first < end:
                places = range(first - self.mine.start, end - self.mine.start, self.at_once)
                yield [slice(place, min(place + self.at_once, end - self.mine.start)) for place in places]

    def every(self, stride: int) -> tuple[slice, "Cut"]:
        """One window of so many, counted over all ranks: where they are among this rank's, and their cut."""
        leaves = tuple((-(-first // stride), -(-end // stride)) for first, end in self.leaves)
        windows = slice(leaves[0][0] * stride - self.mine.start, None, stride)
        return windows, Cut(-(-self.windows // stride), self.at_once, leaves, self.ranks)
