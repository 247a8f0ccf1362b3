"""Lower bound on the connections of every input: diagonals in the B least important blocks of rows of each group."""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.core.diagonal_blocks import DiagonalBlocks
from eggs_ptp.core.least_squares import row_losses
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, RowTiles, sample_tiles
from eggs_ptp.core.rows import lowest_rows
from eggs_ptp.core.step_result import Diagnostic

_ELEMENTS = (
    1 << 21
)  # scores of the blocks processed at a time, which bounds the memory needed in addition to the matrix


class DiagonalBatch(NamedTuple):
    """Diagonal blocks of every group that are still to be written into a mask.

    Attributes:
        rows: Row indices of the blocks, int64 (blocks * height, groups).
        keep: Keep masks, bool (blocks, groups, height, M).
        costs: Score that each block loses over all groups, float64 (blocks,).
    """

    rows: Tensor
    keep: Tensor
    costs: Tensor


class DiagonalBlocksResult(NamedTuple):
    """A mask with diagonal blocks, the weights solved for it, and diagnostics."""

    weight: Tensor
    mask: Tensor
    diagnostics: dict[str, Diagnostic]


class _Candidate(NamedTuple):
    """A mask with `blocks` diagonal blocks per group, its weights (rows of this process only), and their loss."""

    loss: float
    blocks: int
    weight: Tensor
    mask: Tensor


def diagonal_batches(
    score: Tensor, mask: Tensor, importance: Tensor, diagonal_blocks: DiagonalBlocks, first: int, last: int
) -> Iterator[DiagonalBatch]:
    """Yield the diagonals of blocks [first, last) of every group, in batches of bounded memory.

    Args:
        score: (out, in), by which diagonals are chosen.
        mask: The mask before, bool (out, in), from which the cost of a block is counted.
        importance: (out, groups). The blocks of a group are consecutive rows in ascending order of importance.
        diagonal_blocks: How blocks are cut, and which of their entries are kept.
        first: Index of the first block.
        last: Index past the last block.
    """
    height = diagonal_blocks.height
    grouped_score, grouped_mask = (
        torch.unflatten(tensor, 1, (-1, diagonal_blocks.pattern.group)) for tensor in (score, mask)
    )  # (out, groups, M)
    group = torch.arange(grouped_score.shape[1], device=score.device)
    while first < last:
        count = max(1, min(last - first, _ELEMENTS // (height * score.shape[1])))
        rows = lowest_rows(importance, (first + count) * height)[first * height :]  # (rows, groups)
        blocks, before = (
            torch.unflatten(tensor[rows, group], 0, (count, -1)).transpose(1, 2)
            for tensor in (grouped_score, grouped_mask)
        )  # (count, groups, height, M)
        keep = diagonal_blocks.keep(blocks.flatten(0, 1)).view_as(blocks)
        yield DiagonalBatch(rows, keep, (blocks.double() * (before.double() - keep.double())).sum((1, 2, 3)))
        first += count


def write_diagonals(mask: Tensor, batch: DiagonalBatch, count: int | None = None) -> None:
    """Write diagonal blocks into a mask, in place.

    Args:
        mask: bool (out, in).
        batch: The blocks.
        count: How many of the blocks, from the first; None for all.
    """
    grouped_mask = torch.unflatten(mask, 1, (-1, batch.keep.shape[-1]))
    keep = batch.keep[:count]
    group = torch.arange(grouped_mask.shape[1], device=mask.device)
    grouped_mask[batch.rows[: len(keep) * keep.shape[2]], group] = keep.transpose(1, 2).flatten(0, 1)


def add_diagonal_blocks(
    dense: Tensor,
    hessian: Tensor,
    mask: Tensor,
    score: Tensor,
    importance: Tensor,
    diagonal_blocks: DiagonalBlocks,
    B: int | Literal["auto"],
    solve: Callable[[Tensor, slice], Tensor],
    row_tiles: RowTiles = LOCAL_ROW_TILES,
) -> DiagonalBlocksResult:
    """Add B diagonal blocks per group to a mask, or the number of blocks with the least loss.

    The loss is tr((W - W') H (W - W')^T) over the rows of `sample_tiles`. "auto" tries 0, 1, 2, 5, 10, 20, ... blocks
    and finally all, upwards, until one of them does not lower the loss.

    Args:
        dense: W, (out, in).
        hessian: H, (in, in).
        mask: The mask to start from, bool (out, in).
        score: (out, in), by which diagonals are chosen.
        importance: (out, groups), by which the rows of blocks are chosen.
        diagonal_blocks: How blocks are cut, and which of their entries are kept.
        B: Blocks per group, or "auto".
        solve: Takes a mask and a slice of rows, and returns these rows of the weights W' for that mask. It gets `mask`
            itself for 0 blocks.
        row_tiles: Which rows this process computes.

    Returns:
        W' and its mask, both (out, in), and the diagnostics B, diagonal_rows per group, layer_loss and layer_loss_B0 as
        shares of tr(W H W^T), of the same rows.
    """
    most = len(dense) // diagonal_blocks.height
    sampled = {rows.start for rows in sample_tiles(*dense.shape)}

    def sampled_loss(change: Callable[[slice], Tensor]) -> float:
        losses = dense.new_zeros(len(dense))

        def compute(rows: slice) -> tuple[Tensor]:
            return (row_losses(change(rows), hessian) if rows.start in sampled else losses[rows],)

        row_tiles.fill(dense, compute, losses)
        return math.fsum(losses.tolist())  # exactly rounded, so the same on all processors

    def evaluate(candidate_mask: Tensor, blocks: int) -> _Candidate:
        weight = dense.new_empty(dense.shape)  # only the rows of this process are filled

        def change(rows: slice) -> Tensor:
            weight[rows] = solve(candidate_mask, rows)
            return dense[rows] - weight[rows]

        return _Candidate(sampled_loss(change), blocks, weight, candidate_mask)

    without_blocks = best = evaluate(mask, 0)
    current = mask.clone()
    used = 0
    for limit in candidate_counts(most) if B == "auto" else (min(B, most),):
        for batch in diagonal_batches(score, current, importance, diagonal_blocks, used, limit):
            write_diagonals(current, batch)
        used = limit
        current = row_tiles.broadcast(current)
        candidate = evaluate(current.clone(), used) if used else without_blocks
        if B == "auto" and candidate.loss >= best.loss:
            break
        best = candidate
    dense_loss = sampled_loss(lambda rows: dense[rows])
    for rows in row_tiles.tiles_of(dense, row_tiles.rank):
        if rows.start not in sampled:
            best.weight[rows] = solve(best.mask, rows)
    row_tiles.all_gather_rows(dense, best.weight)
    diagnostics: dict[str, Diagnostic] = {
        "B": best.blocks,
        "diagonal_rows": best.blocks * diagonal_blocks.height,
        "layer_loss": best.loss / dense_loss if dense_loss else 0.0,
        "layer_loss_B0": without_blocks.loss / dense_loss if dense_loss else 0.0,
    }
    return DiagonalBlocksResult(best.weight, best.mask, diagnostics)


def candidate_counts(most: int) -> Iterator[int]:
    """Yield the numbers of blocks that "auto" tries: 1, 2, 5, 10, 20, 50, ... below `most`, then `most`."""
    power_of_ten = 1
    while power_of_ten < most:
        yield from (factor * power_of_ten for factor in (1, 2, 5) if factor * power_of_ten < most)
        power_of_ten *= 10
    if most:
        yield most
