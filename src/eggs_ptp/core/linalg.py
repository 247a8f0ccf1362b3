"""Damped Gram matrices and their factorisation, which fails explicitly."""

import torch
from torch import Tensor

from eggs_ptp.errors import NumericsError

_BLOCK = 128  # columns: enough for fast matrix products, few enough that the LAPACK call on a block does not matter
_AMPLE_TOKENS = 32  # tokens per channel; measured on held-out text, with more tokens extra damping gains nothing


def upper_factor(gram: Tensor, damping: float, relative_damping: float = 0.0) -> Tensor:
    """Return the upper triangular factor R with H = R R^T, where H is the damped Hessian as in `damped`.

    The inverse U = R^-1 is the factor of H^-1 = U^T U, and U of the leading k columns is the inverse of R's leading
    k x k corner, so H need not be inverted. A channel that was never active (zero on the diagonal, so zero in its whole
    row and column) gets the mean of the diagonal instead: it is independent of the others, and any positive number
    would do. If none was ever active, H is the identity.

    Args:
        gram: (in, in), symmetric, float32 or float64; it is not changed.
        damping: Damping relative to the mean of the diagonal.
        relative_damping: Damping relative to each entry of the diagonal.

    Returns:
        R, (in, in), with a positive diagonal, in the type of `gram`.

    Raises:
        NumericsError: H is not positive definite, or `gram` holds NaN; says which option to raise.
    """
    diagonal = gram.diagonal()
    mean = _mean_square(diagonal)
    if not mean:
        return torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    shift = damping * mean + torch.where(diagonal == 0, mean, relative_damping * diagonal)
    factor = torch.zeros_like(gram)
    for start in reversed(range(0, gram.shape[0], _BLOCK)):
        stop = min(start + _BLOCK, gram.shape[0])
        right = factor[:stop, stop:]  # (stop, in - stop)
        block = torch.addmm(gram[:stop, start:stop], right, right[start:].T, alpha=-1)  # (stop, block)
        block[start:].diagonal().add_(shift[start:stop])
        # LAPACK computes lower factors. With rows and columns reversed, the lower factor is the upper one.
        lower, failed = torch.linalg.cholesky_ex(block[start:].flip((0, 1)))
        if failed:
            raise NumericsError(
                f"gram: with damping {damping:g} it is not positive definite (input channel "
                f"{stop - int(failed)} of {gram.shape[0]}): raise steps.update.damping to {max(10 * damping, 0.01):g}"
            )
        corner = lower.flip((0, 1))
        factor[start:stop, start:stop] = corner
        factor[:start, start:stop] = torch.linalg.solve_triangular(corner.T, block[:start], upper=False, left=False)
    return factor


def damped(
    gram: Tensor,
    damping: float,
    tokens: Tensor | None = None,
    dtype: torch.dtype | None = None,
    relative_damping: float = 0.0,
) -> Tensor:
    """Return the damped Hessian H = gram + damping * mean(diag gram) * I + relative_damping * diag gram.

    If no input was ever active, so that gram is zero, H is the identity: the largest weights lose the most.

    Args:
        gram: (in, in), symmetric; it is not changed.
        damping: Damping relative to the mean of the diagonal.
        tokens: Number of tokens that `gram` was computed from, if few tokens shall be damped more: `damping` is then
            multiplied by max(1, 32 in / tokens).
        dtype: Type of H; without one at least float32.
        relative_damping: Damping relative to each entry of the diagonal.

    Returns:
        H, (in, in).

    Raises:
        NumericsError: `gram` holds NaN, or there are no tokens.
    """
    if tokens is not None and not tokens > 0:
        raise NumericsError(f"gram: expected calibration tokens, got {float(tokens):g}; check the calibration")
    hessian = gram.to(dtype or torch.promote_types(gram.dtype, torch.float32), copy=True)
    mean = _mean_square(hessian.diagonal())
    if not mean:
        hessian.diagonal().fill_(1.0)
        return hessian
    factor = 1.0 if tokens is None else max(1.0, _AMPLE_TOKENS * len(gram) / float(tokens))
    if relative_damping:
        hessian.diagonal().mul_(1.0 + relative_damping)
    hessian.diagonal().add_(factor * damping * mean)
    return hessian


def _mean_square(diagonal: Tensor) -> Tensor:
    """Return the mean of a Gram matrix's diagonal, which is 0 if no input was ever active."""
    mean = diagonal.mean()
    if not mean >= 0:
        raise NumericsError(
            f"gram: expected mean squared inputs of at least 0, got a mean of {float(mean)}; check the calibration"
        )
    return mean
