"""The floor under the connections of every input: diagonals in the B least important blocks of each group."""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.core.blocks import Reading
from eggs_ptp.core.least_squares import row_losses
from eggs_ptp.core.noted import Fact
from eggs_ptp.core.rows import lowest_rows
from eggs_ptp.core.slabs import ALONE, Slabs, quarters

_ELEMENTS = 1 << 21  # scores put into blocks at a time: bounds the memory beside the matrix itself


class Diagonals(NamedTuple):
    """Blocks of every group on their way into a mask."""

    rows: Tensor  # (blocks * height, groups), which rows they are made of
    keep: Tensor  # bool (blocks, groups, height, M)
    costs: Tensor  # score that each of the blocks, over all groups, costs: float64 (blocks,)


class Connected(NamedTuple):
    """A mask with its floor, the weights that go with it, and the decisions on the way."""

    weight: Tensor
    mask: Tensor
    facts: dict[str, Fact]


def diagonals(
    score: Tensor, mask: Tensor, importance: Tensor, reading: Reading, first: int, last: int
) -> Iterator[Diagonals]:
    """The diagonals of blocks [first, last) of every group, in pieces of bounded memory.

    `score`, `mask` (out, in), `importance` (out, groups): blocks are consecutive rows of ascending importance.
    """
    grouped, kept = (torch.unflatten(tensor, 1, (-1, reading.pattern.group)) for tensor in (score, mask))
    group = torch.arange(grouped.shape[1], device=score.device)
    while first < last:
        span = max(1, min(last - first, _ELEMENTS // (reading.height * score.shape[1])))
        rows = lowest_rows(importance, (first + span) * reading.height)[first * reading.height :]  # (rows, groups)
        blocks, before = (
            torch.unflatten(tensor[rows, group], 0, (span, -1)).transpose(1, 2) for tensor in (grouped, kept)
        )  # (span, groups, height, M)
        keep = reading.keep(blocks.flatten(0, 1)).view_as(blocks)
        yield Diagonals(rows, keep, (blocks.double() * (before.double() - keep.double())).sum((1, 2, 3)))
        first += span


def put(mask: Tensor, found: Diagonals, count: int | None = None) -> None:
    """Write the first `count` of the blocks, or all, into `mask`."""
    kept = torch.unflatten(mask, 1, (-1, found.keep.shape[-1]))
    keep = found.keep[:count]
    group = torch.arange(kept.shape[1], device=mask.device)
    kept[found.rows[: len(keep) * keep.shape[2]], group] = keep.transpose(1, 2).flatten(0, 1)


def connected(
    dense: Tensor,
    hessian: Tensor,
    mask: Tensor,
    score: Tensor,
    importance: Tensor,
    reading: Reading,
    B: int | Literal["auto"],
    solve: Callable[[Tensor, slice], Tensor],
    slabs: Slabs = ALONE,
) -> Connected:
    """`mask` with B blocks per group; "auto", with the B of least loss, of equal ones the least.

    The loss is tr((W - W') H (W - W')^T) of the rows in `quarters`. `solve(mask, rows)` gives those rows of the weights
    W' (out, in) that go with a mask. "auto" tries 0, 1, 2, 5, 10, 20, ... blocks and all that there are, and ends with
    the first that does not lose less.
    """
    most = len(dense) // reading.height
    looked_at = {rows.start for rows in quarters(*dense.shape)}

    def lost(change: Callable[[slice], Tensor]) -> float:
        losses = dense.new_zeros(len(dense))

        def work(rows: slice) -> tuple[Tensor]:
            return (row_losses(change(rows), hessian) if rows.start in looked_at else losses[rows],)

        slabs.fill(dense, work, losses)
        return math.fsum(losses.tolist())  # exact, so the same on all processors

    def weighed(found: Tensor, used: int) -> tuple[float, int, Tensor, Tensor]:
        weight = dense.new_empty(dense.shape)  # rows that are ours

        def work(rows: slice) -> Tensor:
            weight[rows] = solve(found, rows)
            return dense[rows] - weight[rows]

        return lost(work), used, weight, found

    none = best = weighed(mask, 0)
    found, used = mask.clone(), 0
    for limit in _numbers(most) if B == "auto" else (min(B, most),):
        for piece in diagonals(score, found, importance, reading, used, limit):
            put(found, piece)
        used = limit
        found = slabs.agreed(found)
        tried = weighed(found.clone(), used) if used else none
        if B == "auto" and tried[0] >= best[0]:
            break
        best = tried
    energy = lost(lambda rows: dense[rows])
    loss, used, weight, kept = best
    for rows in slabs.slabs_of(dense, slabs.rank):
        if rows.start not in looked_at:
            weight[rows] = solve(kept, rows)
    slabs.spread(dense, weight)
    facts: dict[str, Fact] = {"B": used, "diagonal_rows": used * reading.height}
    facts |= {"layer_loss": loss / energy if energy else 0.0, "layer_loss_B0": none[0] / energy if energy else 0.0}
    return Connected(weight, kept, facts)


def _numbers(most: int) -> Iterator[int]:
    """1, 2, 5, 10, 20, 50, ... below `most`, then `most`."""
    tens = 1
    while tens < most:
        yield from (times * tens for times in (1, 2, 5) if times * tens < most)
        tens *= 10
    if most:
        yield most
