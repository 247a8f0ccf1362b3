"""Relative importance by any norm, and its re-weightings."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.score._relative import relative

_MAX_LOG_NORM = 80.0  # float32 holds e^80 times a weight


def lp(
    weight: Tensor,
    input_norm: Tensor,
    *,
    p: Annotated[float, Field(ge=0)] | Literal["inf"] = 1.0,
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5,
    reweight: Literal["s1", "s2", "s3", "s4"] = "s1",
) -> Tensor:
    """Score each weight as RIA does, relative to the p-norms of its column and its row.

    S_ij = |W_ij| (1/a_j + 1/b_i) * n_j^alpha, with a_j = ||W_*j||_p, b_i = ||W_i*||_p and n_j the norm of input channel
    j; p = 1 is RIA. The other strategies replace the first factor, see `reweight`.

    Args:
        weight: W, (out, in). Zero columns and rows score 0.
        input_norm: n_j per token, (in,).
        p: Order of the norm, at least 0, or "inf". 1 by default; 0 counts the non-zeros, "inf" takes the largest.
        alpha: Exponent of the input norm, at least 0. The default is 0.5, as in RIA; 0 ignores activations.
        reweight: Strategy. "s1" (default) is |W_ij| (1/a_j + 1/b_i), "s2" |W_ij| / (a_j + b_i), "s3"
            |W_ij| (a_j + b_i), "s4" |W_ij| / (1/a_j + 1/b_i).

    Returns:
        Score, (out, in), float32; higher = keep.

    Source:
        Symmetric Pruning, arXiv:2501.18980, equation 3, lemmas 3.8 and 3.9, appendices C.2 and C.3.

    Differs:
        Norms that float32 cannot hold (a small p) lose a common factor, which changes no comparison.
    """
    magnitude = weight.float().abs()
    column, row = _norms(magnitude, float(p), scale_to_largest=reweight in ("s2", "s3"))
    match reweight:
        case "s1":
            score = relative(magnitude, column)
            score += relative(magnitude, row)
        case "s2":
            score = relative(magnitude, column + row)
        case "s3":
            score = magnitude * (column + row)
        case "s4":
            score = magnitude / (1 / column + 1 / row)  # 0 / inf for a zero column or row
    score *= input_norm.float().pow(alpha)
    return score


def _norms(magnitude: Tensor, p: float, *, scale_to_largest: bool) -> tuple[Tensor, Tensor]:
    """Compute the p-norms of the columns, (1, in), and of the rows, (out, 1).

    A norm is never smaller than the largest entry, but it can overflow float32. Then all norms are divided by the
    largest or by the smallest of them, whichever dominates the formula that they enter.
    """
    if p == 1:  # the same sums as in `ri`
        return magnitude.sum(0, keepdim=True), magnitude.sum(1, keepdim=True)
    column = _log_norm(magnitude, p, 0)
    row = _log_norm(magnitude, p, 1)
    logs = torch.cat([column.flatten(), row.flatten()])
    finite = logs[logs.isfinite()]
    if len(finite) and float(finite.max()) > _MAX_LOG_NORM:
        unit = finite.max() if scale_to_largest else finite.min()
        column = column - unit
        row = row - unit
    return column.exp().float(), row.exp().float()


def _log_norm(magnitude: Tensor, p: float, dim: int) -> Tensor:
    """Return the logarithm of the p-norm along `dim`, in float64: the norm can be n^(1/p) times the largest entry."""
    if p == 0:
        return magnitude.count_nonzero(dim).double().log().unsqueeze(dim)
    largest = magnitude.amax(dim, keepdim=True)
    if p == math.inf:
        return largest.double().log()
    total = relative(magnitude, largest).pow(p).sum(dim, keepdim=True, dtype=torch.float64)
    return largest.double().log() + total.log() / p
