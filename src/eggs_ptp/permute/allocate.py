"""Heuristic channel allocation: channels sorted by score and spread over the groups of M."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, RowTiles
from eggs_ptp.permute._assign import refine_by_assignment


def allocate(
    score: Tensor,
    pattern: Pattern,
    row_tiles: RowTiles = LOCAL_ROW_TILES,
    *,
    channel_score: Literal["sum", "retained_layer", "retained_row"] = "sum",
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    allocation: Literal["serpentine", "round_robin"] = "serpentine",
    assign: bool = False,
    passes: Annotated[int, Field(ge=1)] = 1,
    blocks: Annotated[int, Field(ge=1)] = 1,
    rows: Annotated[int, Field(ge=1)] | None = None,
    widest: Annotated[int, Field(ge=1)] = 256,
) -> Tensor:
    """Permute input channels so that every group of M gets one channel of each level of importance.

    Channels are sorted by their total t_j in ascending order, equal ones by index, and cut into M segments of
    G = in / M. Segment k fills position k of all groups: group g gets its element g or, in a "serpentine", its element
    G - 1 - g where k is odd. `assign` then refines the permutation by linear assignment.

    Args:
        score: Scores of all linears that share the input activation, stacked along the rows, (out, in); higher = keep.
        pattern: N kept of every M.
        row_tiles: How the assignment's work is divided over processes; one process by default.
        channel_score: Scores that a channel's total t_j adds up: "sum" (default), all of them; "retained_layer" or
            "retained_row", only those that an unstructured mask would retain, compared over the layer or within each
            row, with the count of the public code.
        sparsity: Share of weights that this unstructured mask prunes, between 0 and 1; 0.5 by default. "sum" ignores
            it.
        allocation: Order in which a segment is spread over the groups: "serpentine" (default) makes the groups' totals
            more even; "round_robin" takes every segment in ascending order.
        assign: Refine by linear assignment, one position at a time, which never lowers the retained score; off by
            default. The options below concern this refinement only.
        passes: Number of passes over all positions, at least 1 (default). The second and third gain most where many
            linears share one permutation, as in the residual stream.
        blocks: Consecutive blocks of groups that are refined separately, at least 1; 1 by default. More blocks are
            faster and less good.
        rows: Rows of the scores that the assignment looks at, evenly spaced, at least 1; None (default) is all of them.
            Fewer rows are faster and less good.
        widest: Most groups that are refined together, at least 1; 256 by default. More groups (at M = 4 more than 1024
            inputs) are refined in several parts, each made of every k-th group, in time linear in the inputs. At 8192
            inputs parts of 256 take half the time of parts of 512 and lose 8 % of what the assignment gains; those take
            half the time of parts of 1024 and lose 6 %.

    Returns:
        Channel permutation, int64 (in,): entry i is the old index of the channel at position i.

    Raises:
        PatternError: The columns cannot be cut into groups of M.

    Source:
        RIA, ICLR 2024 (OpenReview Tr0lPx9woF), channel permutation and its public code.
    """
    pattern.check_width(score.shape[1], "score")
    channel_scores = score
    pruned_count = None
    if channel_score != "sum":
        group: Literal["row", "layer"] = "layer" if channel_score == "retained_layer" else "row"
        mask = keep_top(score, Unstructured(sparsity), group=group, count="original")
        channel_scores = score * mask
        pruned_count = (~mask).sum(0)
    total = channel_scores.sum(0, dtype=torch.float64)  # (in,)
    permutation = total.argsort(stable=True)
    if pruned_count is not None:  # the public code sorts by (retained score, number pruned)
        permutation = pruned_count.argsort(stable=True)
        permutation = permutation[total[permutation].argsort(stable=True)]
    segments = permutation.view(pattern.group, -1)  # (M, groups)
    if allocation == "serpentine":
        segments[1::2] = segments[1::2].flip(1)
    allocated = segments.T.reshape(-1)
    for _ in range(passes if assign else 0):
        allocated = refine_by_assignment(score, allocated, pattern, blocks, row_tiles, rows=rows, widest=widest)
    return allocated
