"""The processes that prune one model together: their interface, and the group of a single process."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from eggs_ptp.core.row_tiles import RowTiles
from eggs_ptp.core.stats import Moments

T = TypeVar("T")
NamedTensors = tuple[Mapping[str, Tensor], Any]  # tensors by name, and a small picklable object that goes with them


class ProcessGroup(RowTiles, ABC):
    """Collective operations over the processes of one run, as `torch.distributed` names them.

    `rank` is this process, of `world_size`; rank 0 is the main process, which alone writes files and prints. Every
    method but `device` and `assign` is collective: all processes call it, in the same order.
    """

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the output."""
        return self.rank == 0

    @abstractmethod
    def device(self, name: str) -> str:
        """Return the device of this process where the user requested `name`."""

    @abstractmethod
    def all_reduce_moments(self, sums: Iterable[tuple[Moments, Sequence[Moments]]]) -> None:
        """Add up sums over all processes, in place, in the order of the reduction chunks.

        The order is fixed, (((0 + c0) + c1) + c2) + c3, whichever process holds which chunks, so that the result does
        not depend on the number of processes, bit for bit.

        Args:
            sums: For each activation the sum to complete and the chunks still to be added to it. On rank 0 the first
                already has rank 0's chunks; on other ranks it is their first chunk, and the rest follow.
        """

    @abstractmethod
    def all_reduce(self, counts: Tensor) -> Tensor:
        """Sum whole numbers over the processes."""

    @abstractmethod
    def all_gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Concatenate each of `parts` (rows, ...) with those of the other processes, in rank order."""

    @abstractmethod
    def all_true(self, condition: bool) -> bool:
        """Return whether the condition holds on all processes."""

    @abstractmethod
    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its small, picklable result on all processes."""

    @abstractmethod
    def broadcast_tensors(self, make: Callable[[], NamedTensors]) -> NamedTensors:
        """Call `make` on rank 0 and return its tensors on all processes."""

    @abstractmethod
    def broadcast_from(self, source: int, tensor: Tensor | None) -> Tensor:
        """Return the tensor of rank `source` on all processes; the others pass None."""

    @abstractmethod
    def all_gather_tensors(self, local: dict[str, NamedTensors]) -> dict[str, NamedTensors]:
        """Merge the dictionaries of all processes."""

    @abstractmethod
    def assign(self, costs: Mapping[str, float]) -> dict[str, int]:
        """Assign named work to ranks, the costliest first, each to the rank with the least to do."""

    @abstractmethod
    def concurrent(self, groups: Mapping[str, T]) -> list[dict[str, T]]:
        """Split groups of matrices into sets that are pruned at the same time."""

    @abstractmethod
    def gather_windows(self, windows: Tensor) -> Tensor | None:
        """Return the windows of all processes (windows, ...), in order, on rank 0; None elsewhere."""

    @abstractmethod
    def iterate_windows(self, windows: Tensor) -> Iterable[Tensor]:
        """Yield the windows of all processes on rank 0, a few at a time; other ranks send theirs and get none."""

    @abstractmethod
    def scatter_windows(self, windows: Iterator[Tensor] | None, into: Tensor) -> None:
        """Fill `into` with this process's share of the windows that rank 0 yields."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until all processes are here."""


class SingleProcess(ProcessGroup):
    """A group of one: every collective returns what it is given.

    Groups of matrices are pruned one after the other, as the results of several at once would take memory.
    """

    def device(self, name: str) -> str:
        """Return `name`."""
        return name

    def all_reduce_moments(self, sums: Iterable[tuple[Moments, Sequence[Moments]]]) -> None:
        """Do nothing: the chunks are added up as they end."""

    def all_reduce(self, counts: Tensor) -> Tensor:
        """Return `counts`."""
        return counts

    def all_gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return `parts`."""
        return list(parts)

    def all_true(self, condition: bool) -> bool:
        """Return the condition."""
        return condition

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Call `make`."""
        return make()

    def broadcast_tensors(self, make: Callable[[], NamedTensors]) -> NamedTensors:
        """Call `make`."""
        return make()

    def broadcast_from(self, source: int, tensor: Tensor | None) -> Tensor:
        """Return the tensor."""
        assert tensor is not None, source  # noqa: S101 - there is no other rank
        return tensor

    def all_gather_tensors(self, local: dict[str, NamedTensors]) -> dict[str, NamedTensors]:
        """Return `local`."""
        return local

    def assign(self, costs: Mapping[str, float]) -> dict[str, int]:
        """Assign everything to rank 0."""
        return dict.fromkeys(costs, 0)

    def concurrent(self, groups: Mapping[str, T]) -> list[dict[str, T]]:
        """Return the groups one by one."""
        return [{name: group} for name, group in groups.items()]

    def gather_windows(self, windows: Tensor) -> Tensor | None:
        """Return the windows."""
        return windows

    def iterate_windows(self, windows: Tensor) -> Iterable[Tensor]:
        """Yield the windows one by one."""
        return list(windows.split(1))

    def scatter_windows(self, windows: Iterator[Tensor] | None, into: Tensor) -> None:
        """Copy the windows into `into`."""
        assert windows is not None  # noqa: S101 - rank 0 has them
        with torch.inference_mode():
            for target, window in zip(into, windows, strict=True):
                target.copy_(window)

    def barrier(self) -> None:
        """Return at once."""


SINGLE_PROCESS = SingleProcess()
