"""Optimal brain surgeon's saliency, as SparseGPT takes it before any update."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.core.linalg import upper_factor
from eggs_ptp.errors import NumericsError


def obs(weight: Tensor, gram: Tensor, *, damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01) -> Tensor:
    """W_ij^2 / d_j^2 with d_j = U_jj, where U is the upper Cholesky factor of the inverse of H, H^-1 = U^T U.

    H = gram + damping * mean(diag gram) * I; d_j^2 is the j-th diagonal entry of the inverse of what is left of H once
    the columns before j are settled. `weight` (out, in) and `gram` (in, in) to (out, in), float32, higher = keep.
    Channels that never fired score 0.

    Source: SparseGPT, arXiv:2301.00774, equation 3 and algorithm 1, without its updates; a start mask of DSnoT,
    arXiv:2310.08915.
    Differs: DSnoT's public code never fills its H, so that it prunes the first columns of every row.

    Raises:
        NumericsError: H is not positive definite, or `gram` is zero.
    """
    try:
        factor = upper_factor(gram.float(), damping)
    except NumericsError as error:
        raise NumericsError(str(error).replace("steps.update.", "steps.score.")) from None
    fired = gram.diagonal() != 0
    return (weight.float() * (factor.diagonal() * fired)).square()
