"""Channels sorted by score and dealt to the groups of M."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.slabs import ALONE, Slabs
from eggs_ptp.permute._assign import refine


def deal(
    score: Tensor,
    pattern: Pattern,
    slabs: Slabs = ALONE,
    *,
    channel_score: Literal["sum", "retained_layer", "retained_row"] = "sum",
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    dealing: Literal["serpentine", "round_robin"] = "serpentine",
    assign: bool = False,
    passes: Annotated[int, Field(ge=1)] = 1,
    blocks: Annotated[int, Field(ge=1)] = 1,
    rows: Annotated[int, Field(ge=1)] | None = None,
    widest: Annotated[int, Field(ge=1)] = 256,
) -> Tensor:
    """Sort channels by t_j, cut them into M segments of G = in / M, and deal each segment out, one to a group.

    `score` (out, in) of all readers of the activation, stacked along the rows; the order has shape (in,), int64.
    Segment k supplies place k of every group: group g takes its element g, or G - 1 - g for odd k in a
    `serpentine`. Ascending order, equal scores by lower channel.

    Args:
        score: higher = keep.
        pattern: N kept of every M.
        slabs: who weighs which channels of an assignment.
        channel_score: t_j is the `sum` of the channel's scores, or of those that an unstructured mask would retain,
            compared over the layer or in each row, with the count of the public code.
        sparsity: share that this unstructured mask prunes.
        dealing: `serpentine` evens the groups out; `round_robin` takes every segment from its low end.
        assign: refine by linear assignment, one place at a time; never lowers the retained score.
        passes: how often the assignment goes over all places; the second and third gain most where many readers share
            one order, as in the residual stream.
        rows: the assignment looks at that many evenly spaced rows, if there are more: faster, less good.
        widest: the assignment refines more groups than that in several parts, each of every so-manieth group: beyond
            1024 inputs at M = 4, in time linear in them. At 8192 inputs parts of 256 take half the time of parts of
            512 and lose 8 % of what the assignment gains, which take half that of parts of 1024 and lose 6 %.
        blocks: the assignment refines the groups in that many consecutive blocks, each for itself: faster, less good.

    Source: RIA, ICLR 2024 (OpenReview Tr0lPx9woF), channel permutation and its public code.
    """
    pattern.check_width(score.shape[1], "score")
    value, pruned = score, None
    if channel_score != "sum":
        group: Literal["row", "layer"] = "layer" if channel_score == "retained_layer" else "row"
        mask = keep_top(score, Unstructured(sparsity), group=group, count="original")
        value, pruned = score * mask, (~mask).sum(0)
    by_score = value.sum(0, dtype=torch.float64)  # (in,)
    order = by_score.argsort(stable=True)
    if pruned is not None:  # the public code sorts by (retained score, number pruned)
        order = pruned.argsort(stable=True)
        order = order[by_score[order].argsort(stable=True)]
    segments = order.view(pattern.group, -1)  # (M, groups)
    if dealing == "serpentine":
        segments[1::2] = segments[1::2].flip(1)
    dealt = segments.T.reshape(-1)
    for _ in range(passes if assign else 0):
        dealt = refine(score, dealt, pattern, blocks, slabs, rows=rows, widest=widest)
    return dealt
