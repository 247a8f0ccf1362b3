"""Ranks: the processes that prune one model together, as each of them sees the others."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from eggs_ptp.core.slabs import Slabs
from eggs_ptp.core.stats import Moments

T = TypeVar("T")
Work = tuple[Mapping[str, Tensor], Any]  # tensors by name, and something small beside them


class Ranks(Slabs):
    """One process by itself. `Team` (engine/team.py) is one of several, and all of its ranks call the same in turn.

    `rank` is this one, of `count`; rank 0 leads: it alone writes and speaks.
    """

    @property
    def leads(self) -> bool:
        """Whether this rank writes the output."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this rank, where `name` is asked for."""
        return name

    def add_up(self, sums: Iterable[tuple[Moments, Sequence[Moments]]]) -> None:
        """Make each first one the sum over all ranks, leaf after leaf: (((0 + l0) + l1) + l2) + l3, whoever has them.

        It comes with rank 0's leaves added up, and on other ranks as the first of theirs, which those beside it follow.
        """

    def total(self, counts: Tensor) -> Tensor:
        """Whole numbers, added up over the ranks."""
        return counts

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each of `parts` (rows, ...) joined along the rows with the other ranks', in the order of the ranks."""
        return list(parts)

    def all(self, here: bool) -> bool:
        """Whether it is so on all ranks."""
        return here

    def of_leader(self, make: Callable[[], T]) -> T:
        """Whatever rank 0 makes, to all ranks; pickled, so small."""
        return make()

    def led(self, make: Callable[[], Work]) -> Work:
        """Tensors by name, and something small beside them, which rank 0 makes for all ranks."""
        return make()

    def everywhere(self, owner: int, tensor: Tensor | None) -> Tensor:
        """The tensor that rank `owner` has."""
        assert tensor is not None, owner  # noqa: S101 - there is no other rank
        return tensor

    def exchanged(self, mine: dict[str, Work]) -> dict[str, Work]:
        """What any rank has, by name, on all ranks: tensors, and something small beside them."""
        return mine

    def deal(self, costs: Mapping[str, float]) -> dict[str, int]:
        """Which rank does which of some pieces of work: the costliest first, each to who has least to do."""
        return dict.fromkeys(costs, 0)

    def at_once(self, groups: Mapping[str, T]) -> list[dict[str, T]]:
        """How many of the groups are dealt out together: one by one, as results of more than one take memory."""
        return [{name: group} for name, group in groups.items()]

    def collected(self, windows: Tensor) -> Tensor | None:
        """The windows of all ranks (windows, ...), in order, on rank 0; None elsewhere."""
        return windows

    def rows(self, windows: Tensor) -> Iterable[Tensor]:
        """The windows of all ranks on rank 0, some at a time; others send theirs, and get none."""
        return list(windows.split(1))

    def scatter(self, windows: Iterator[Tensor] | None, into: Tensor) -> None:
        """Fill `into` with this rank's part of the windows of all that rank 0 has."""
        assert windows is not None  # noqa: S101 - there is no other rank
        with torch.inference_mode():
            for place, window in zip(into, windows, strict=True):
                place.copy_(window)

    def wait(self) -> None:
        """Wait until all ranks are here."""


ALONE = Ranks()
