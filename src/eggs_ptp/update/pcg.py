"""Exact reconstruction: the kept weights that answer best for all that were pruned."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.core.linalg import damped
from eggs_ptp.errors import MethodError
from eggs_ptp.update._least_squares import least_squares


def pcg(
    weight: Tensor,
    mask: Tensor | None,
    gram: Tensor,
    *,
    iterations: Annotated[int, Field(ge=0)] = 20,
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01,
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Solve for the kept weights: W' = argmin over weights on the mask of tr((W - W') H (W - W')^T).

    H = gram + damping * mean(diag gram) * I. Each row is solved by conjugate gradients, preconditioned by 1 / diag H,
    from its masked weights; its loss never rises, and it stops after `iterations`, or once an iteration has lowered
    its loss by less than `tolerance` of it. `weight` (out, in), `mask` (out, in) True = keep, any pattern, `gram`
    (in, in); returns weight, in float32, and mask.

    Where inputs leave a weight undecided (fewer tokens than channels, channels that move together) `damping` decides,
    in favour of its dense value: raise it to 0.05 or 0.1 below some 8 tokens per channel. Kept weights of channels
    that never fired keep their dense value.

    Source: ALPS, arXiv:2406.07831, its second stage, for any mask.
    Differs: every row has its own step sizes and stop.

    Raises:
        MethodError: there is no mask.
        NumericsError: gram is zero.
    """
    if mask is None:
        raise MethodError(
            "steps.update: pcg solves for the weights of a given mask, and there is none; give steps.select, or masks"
        )
    hessian = damped(gram, damping)
    dense = weight.to(hessian.dtype)
    return least_squares(dense, mask, hessian, dense, iterations, tolerance), mask
