"""Exact reconstruction: the kept weights of least output error, by preconditioned conjugate gradients."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.least_squares import least_squares
from eggs_ptp.core.linalg import damped
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES, RowTiles
from eggs_ptp.errors import MethodError


def pcg(
    weight: Tensor,
    mask: Tensor | None,
    gram: Tensor,
    start: Tensor | None = None,
    tokens: Tensor | None = None,
    row_tiles: RowTiles = LOCAL_ROW_TILES,
    *,
    iterations: Annotated[int, Field(ge=0)] = 20,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Solve for the kept weights that minimise the layer's output error under a given mask.

    W' = argmin over weights supported on the mask of tr((W - W') H (W - W')^T), with
    H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I. Each row is solved by conjugate gradients,
    preconditioned by 1 / diag H, starting from `start` or from its dense weights on the mask. Its loss never rises.

    Where inputs leave a weight undetermined (fewer tokens than channels, channels that move together) the damping
    decides, in favour of its dense value. Kept weights of channels that are always zero keep their dense value.

    Args:
        weight: W, (out, in).
        mask: Keep mask, bool (out, in), of any pattern.
        gram: X^T X / tokens, (in, in).
        start: Weights of a previous update step, (out, in); None for the first.
        tokens: Number of tokens that gram was computed from, shape (); None for no correction of the damping.
        row_tiles: How rows are divided over processes; one process by default.
        iterations: Most iterations of a row, at least 0; 20 by default. 0 returns the starting weights.
        damping: Share of the mean of gram's diagonal that is added to its diagonal, at least 0; 0.01 by default.
        tolerance: A row stops once an iteration lowers its loss by less than this share of it, 0 to 1; 0.0001 by
            default.

    Returns:
        Weight, float32 (out, in), and the mask.

    Raises:
        MethodError: There is no mask.
        NumericsError: gram is zero.

    Source:
        ALPS, arXiv:2406.07831, its second stage, for any mask.

    Differs:
        Every row has its own step sizes and stops by itself; fewer than 32 tokens per channel raise the damping.
        Measured on held-out text in the first blocks of two small models, that lowers the output error, relative to
        that without an update, from 1.5 to 0.9 and 0.8 at 1 token per channel, and from 0.74 and 0.65 to 0.73 and 0.63
        at 8.
    """
    if mask is None:
        raise MethodError(
            "steps.update: pcg solves for the weights of a given mask, and there is none; give steps.select, or masks"
        )
    hessian = damped(gram, damping, tokens)
    dense = weight.to(hessian.dtype)
    # Inputs that are always zero say nothing about their weights, nor about what a previous step made of them.
    initial = dense if start is None else torch.where(gram.diagonal() == 0, dense, start.to(hessian.dtype))
    solved = dense.new_empty(dense.shape)

    def solve(rows: slice) -> tuple[Tensor]:
        return (least_squares(dense[rows], mask[rows], hessian, initial[rows], iterations, tolerance),)

    row_tiles.fill(dense, solve, solved)
    return solved, mask
