"""Factorisations of a damped Gram matrix, with explicit failure."""

import torch
from torch import Tensor

from eggs_ptp.errors import NumericsError

_BLOCK = 128  # wide enough for fast matrix products, narrow enough that what is left of LAPACK does not show


def upper_factor(gram: Tensor, damping: float) -> Tensor:
    """R, upper triangular with positive diagonal: H = R R^T, H = gram + damping * mean(diag gram) * I.

    `gram` (in, in), symmetric, float32 or float64, only read; R has its shape and type. The inverse U = R^-1 is
    the factor of H^-1 = U^T U, and U of the leading k columns is the inverse of R's leading k x k corner, so H
    need not be inverted. A channel that never fired (zero on the diagonal, so zero in its whole row and column)
    gets the mean of the diagonal: it stands alone, and any positive number would do.

    Raises:
        NumericsError: H is not positive definite, or `gram` is zero; says which option to raise.
    """
    diagonal = gram.diagonal()
    mean = diagonal.mean()
    if not mean > 0:
        raise NumericsError("gram: expected positive mean squared inputs, got only zeros or NaN; check the calibration")
    shift = damping * mean + torch.where(diagonal == 0, mean, 0.0)
    factor = torch.zeros_like(gram)
    for start in reversed(range(0, gram.shape[0], _BLOCK)):
        stop = min(start + _BLOCK, gram.shape[0])
        right = factor[:stop, stop:]  # (stop, in - stop)
        block = torch.addmm(gram[:stop, start:stop], right, right[start:].T, alpha=-1)  # (stop, block)
        block[start:].diagonal().add_(shift[start:stop])
        # Turned by half a turn, the lower factor that LAPACK knows is the upper one.
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


_AMPLE = 32  # tokens per channel; measured on held-out text, more damping gains nothing from here on


def damped(gram: Tensor, damping: float, tokens: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """H = gram + damping * mean(diag gram) * I, in `dtype`; float32 at least without one.

    Where `tokens` says how many gram was made of, `damping` is multiplied by max(1, 32 in / tokens).

    Raises:
        NumericsError: `gram` is zero or holds NaN.
    """
    hessian = gram.to(dtype or torch.promote_types(gram.dtype, torch.float32), copy=True)
    mean = hessian.diagonal().mean()
    if not mean > 0:
        raise NumericsError("gram: expected positive mean squared inputs, got only zeros or NaN; check the calibration")
    scarce = 1.0 if tokens is None else max(1.0, _AMPLE * len(gram) / float(tokens))
    hessian.diagonal().add_(scarce * damping * mean)
    return hessian
