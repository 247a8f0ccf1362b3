"""Chain: sums of several ranks added up in their order, so that who has how many of them makes no difference."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eggs_ptp.core.stats import Moments

_LOAD = 8 * 1024**2  # bytes that travel at once, so that a rank adds while others send


def chain(sums: Iterable[tuple[Moments, Sequence[Moments]]], rank: int, count: int) -> None:
    """Make each first one the sum of all ranks' leaves, see `Ranks.add_up`.

    Each rank adds its leaves to the sum of those before it, load after load; the last has the whole, and gives it to
    all. So bytes go round twice, as in an all-reduce in a ring, but the order of the additions is that of the leaves.
    """
    loads = list(_loads(sums))
    with torch.inference_mode():
        for load in loads:
            whole = _taken(load)
            if rank:
                before = torch.empty_like(whole)
                dist.recv(before, rank - 1)
                whole += before
            for (_, others), part in zip(load, whole.split([piece.numel() for piece, _ in load]), strict=True):
                for other in others:
                    part += other.reshape(-1)
            if rank + 1 < count:
                dist.send(whole, rank + 1)
            _put(load, whole)
        for load in loads:
            whole = _taken(load)
            dist.broadcast(whole, count - 1)
            _put(load, whole)


def _loads(sums: Iterable[tuple[Moments, Sequence[Moments]]]) -> Iterator[list[tuple[Tensor, list[Tensor]]]]:
    """Pieces that travel together, of one type, each with those of the leaves that follow."""
    load: list[tuple[Tensor, list[Tensor]]] = []
    for total, leaves in sums:
        for piece, *others in zip(total.pieces(), *(leaf.pieces() for leaf in leaves), strict=True):
            if load and (load[0][0].dtype != piece.dtype or sum(held.nbytes for held, _ in load) >= _LOAD):
                yield load
                load = []
            load.append((piece, others))
    if load:
        yield load


def _taken(load: Sequence[tuple[Tensor, Any]]) -> Tensor:
    return torch.cat([piece.reshape(-1) for piece, _ in load])


def _put(load: Sequence[tuple[Tensor, Any]], whole: Tensor) -> None:
    for (piece, _), part in zip(load, whole.split([piece.numel() for piece, _ in load]), strict=True):
        piece.copy_(part.view(piece.shape))
