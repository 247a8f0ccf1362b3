"""Optimal brain surgeon's saliency, as SparseGPT computes it before any update."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.core.linalg import upper_factor
from eggs_ptp.errors import NumericsError


def obs(weight: Tensor, gram: Tensor, *, damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01) -> Tensor:
    """Score each weight by the loss of pruning it, with the columns to its left fixed.

    S_ij = W_ij^2 / d_j^2 with d_j = U_jj, where U is the upper Cholesky factor of the inverse Hessian, H^-1 = U^T U,
    and H = gram + damping * mean(diag gram) * I. d_j^2 is the j-th diagonal entry of the inverse of H without the
    columns before j.

    Args:
        weight: W, (out, in).
        gram: X^T X / tokens of the layer's inputs, (in, in).
        damping: Share of the mean of gram's diagonal that is added to its diagonal, at least 0; 0.01 by default, as in
            SparseGPT. Raise it when the factorisation fails.

    Returns:
        Score, (out, in), float32; higher = keep. Channels that are always zero score 0.

    Raises:
        NumericsError: H is not positive definite, or `gram` is zero.

    Source:
        SparseGPT, arXiv:2301.00774, equation 3 and algorithm 1, without its updates. DSnoT, arXiv:2310.08915, starts
        from this mask.

    Differs:
        DSnoT's public code never fills its H, so that it prunes the first columns of every row.
    """
    try:
        factor = upper_factor(gram.float(), damping)
    except NumericsError as error:
        raise NumericsError(str(error).replace("steps.update.", "steps.score.")) from None
    active = gram.diagonal() != 0
    return (weight.float() * (factor.diagonal() * active)).square()
