"""Weights that undo, as far as a linear map can, what pruning has done to the stream so far."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.linalg import damped
from eggs_ptp.core.slabs import ALONE, Slabs
from eggs_ptp.errors import NumericsError


def drift(
    weight: Tensor,
    gram: Tensor,
    cross: Tensor,
    slabs: Slabs = ALONE,
    *,
    share: Annotated[float, Field(ge=0, le=1)] = 1.0,
    damping: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01,
) -> Tensor:
    """Find the dense weight V that answers best, from what the pruned model feeds it, for what the dense model says.

    V = argmin ||Y - X V^T||^2 / tokens + d ||V - W||^2, d = damping * mean(diag gram), so V = (cross + d W) H^-1 with
    H = gram + d I: X (tokens, in) is what reaches this matrix behind everything that has been pruned, Y (tokens, out)
    what the dense model has here. For a matrix that writes to the residual stream Y contains what the stream itself has
    drifted: X then is asked to bring it back. Masks and weights found for V instead of W are those of the nearest to
    Y, since ||Y - X W'^T||^2 = ||X (V - W')^T||^2 + what no weight can reach (at d = 0).

    `weight` (out, in), `gram` = X^T X / tokens (in, in), `cross` = Y^T X / tokens (out, in); returns (1 - share) W +
    share V in float32. `damping` decides where tokens are few: raise it below some 8 tokens per channel.

    Source: this project; the inputs' part is GPTAQ's asymmetric calibration (arXiv:2504.02692), in closed form.

    Raises:
        NumericsError: gram is zero, or not positive definite with this damping.
    """
    lower = damped(gram, damping, dtype=torch.float64)
    failed = torch.zeros((), dtype=torch.int32, device=lower.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))  # in its place: the largest there is here
    if failed:
        raise NumericsError(
            f"gram: with damping {damping:g} it is not positive definite; raise steps.correct.damping to "
            f"{max(10 * damping, 0.01):g}"
        )
    pull = damping * gram.diagonal().mean(dtype=torch.float64)
    found = torch.empty(weight.shape, device=weight.device)
    slabs.fill(weight, lambda rows: (_answered(weight[rows], cross[rows], lower, pull, share),), found)
    return found


def _answered(weight: Tensor, cross: Tensor, lower: Tensor, pull: Tensor, share: float) -> Tensor:
    """The corrected rows of a matrix, given the factor of H."""
    dense = weight.double()
    half = torch.linalg.solve_triangular(lower.mT, cross.double() + pull * dense, upper=True, left=False)
    solved = torch.linalg.solve_triangular(lower, half, upper=False, left=False)
    return torch.lerp(dense, solved, share).float()
