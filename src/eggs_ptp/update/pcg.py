"""Exact reconstruction: the kept weights that answer best for all that were pruned."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.least_squares import least_squares
from eggs_ptp.core.linalg import damped
from eggs_ptp.core.slabs import ALONE, Slabs
from eggs_ptp.errors import MethodError


def pcg(
    weight: Tensor,
    mask: Tensor | None,
    gram: Tensor,
    start: Tensor | None = None,
    tokens: Tensor | None = None,
    slabs: Slabs = ALONE,
    *,
    iterations: Annotated[int, Field(ge=0)] = 20,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Solve for the kept weights: W' = argmin over weights on the mask of tr((W - W') H (W - W')^T).

    H = gram + damping * max(1, 32 in / tokens) * mean(diag gram) * I. Each row is solved by conjugate gradients,
    preconditioned by 1 / diag H, from `start`, the weights of an update step before this one, or from its dense
    weights, on the mask; its loss never rises, and it stops after `iterations`, or once an iteration has lowered its
    loss by less than `tolerance` of it. `weight`, `start` (out, in), `mask` (out, in) True = keep, any pattern, `gram`
    (in, in), `tokens` that it was made of; returns weight, in float32, and mask.

    Where inputs leave a weight undecided (fewer tokens than channels, channels that move together) the damping decides,
    in favour of its dense value. Kept weights of channels that never fired keep their dense value.

    Source: ALPS, arXiv:2406.07831, its second stage, for any mask.
    Differs: every row has its own step sizes and stop; fewer than 32 tokens per channel raise the damping. Measured on
    held-out text in the first blocks of two small models, that brings the output error from 1.5 of what it is without
    an update down to 0.9 and 0.8 at 1 token per channel, and from 0.74 and 0.65 down to 0.73 and 0.63 at 8.

    Raises:
        MethodError: there is no mask.
        NumericsError: gram is zero.
    """
    if mask is None:
        raise MethodError(
            "steps.update: pcg solves for the weights of a given mask, and there is none; give steps.select, or masks"
        )
    hessian = damped(gram, damping, tokens)
    dense = weight.to(hessian.dtype)
    # Inputs that never fired say nothing about their weights, nor about what an earlier step has made of them.
    begin = dense if start is None else torch.where(gram.diagonal() == 0, dense, start.to(hessian.dtype))
    solved = dense.new_empty(dense.shape)

    def solve(rows: slice) -> tuple[Tensor]:
        return (least_squares(dense[rows], mask[rows], hessian, begin[rows], iterations, tolerance),)

    slabs.fill(dense, solve, solved)
    return solved, mask
