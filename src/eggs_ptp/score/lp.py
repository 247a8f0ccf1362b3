"""Relative importance by any norm, and its re-weightings."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.score._relative import relative

_EXPONENT = 80.0  # e^80, with room for a weight, is what float32 holds


def lp(
    weight: Tensor,
    input_norm: Tensor,
    *,
    p: Annotated[float, Field(ge=0)] | Literal["inf"] = 1.0,
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5,
    reweight: Literal["s1", "s2", "s3", "s4"] = "s1",
) -> Tensor:
    """|W_ij| (1/a_j + 1/b_i) * n_j^alpha, with a_j = ||W_*j||_p and b_i = ||W_i*||_p; p = 1 is RIA.

    Args:
        weight: (out, in); zero columns and rows score 0.
        input_norm: n_j, (in,), per token.
        p: of the norm; 0 counts the non-zeros, inf takes the largest.
        alpha: exponent of the input norm.
        reweight: "s1" as above; "s2" |W_ij| / (a_j + b_i); "s3" |W_ij| (a_j + b_i); "s4" |W_ij| / (1/a_j + 1/b_i).

    Returns:
        (out, in), float32, higher = keep.

    Source: Symmetric Pruning, arXiv:2501.18980, equation 3, lemmas 3.8 and 3.9, appendices C.2 and C.3.
    Differs: of norms beyond float32 (a small p) a common factor is left out, which no comparison sees.
    """
    size = weight.float().abs()
    column, row = _norms(size, float(p), largest=reweight in ("s2", "s3"))
    match reweight:
        case "s1":
            score = relative(size, column)
            score += relative(size, row)
        case "s2":
            score = relative(size, column + row)
        case "s3":
            score = size * (column + row)
        case "s4":
            score = size / (1 / column + 1 / row)  # of a zero column or row, 0 / inf
    score *= input_norm.float().pow(alpha)
    return score


def _norms(size: Tensor, p: float, *, largest: bool) -> tuple[Tensor, Tensor]:
    """p-norms of the columns, (1, in), and of the rows, (out, 1).

    A norm is never less than the largest entry, but it can be too large for float32. Then all are divided by the
    largest or by the smallest of them, whichever weighs most in what is to be done with them.
    """
    if p == 1:  # the very sums of `ri`
        return size.sum(0, keepdim=True), size.sum(1, keepdim=True)
    column, row = _log_norm(size, p, 0), _log_norm(size, p, 1)
    logs = torch.cat([column.flatten(), row.flatten()])
    finite = logs[logs.isfinite()]
    if len(finite) and float(finite.max()) > _EXPONENT:
        unit = finite.max() if largest else finite.min()
        column, row = column - unit, row - unit
    return column.exp().float(), row.exp().float()


def _log_norm(size: Tensor, p: float, dim: int) -> Tensor:
    """Logarithm of the p-norm along `dim`, in float64: the norm itself can be n^(1/p) times the largest entry."""
    if p == 0:
        return size.count_nonzero(dim).double().log().unsqueeze(dim)
    most = size.amax(dim, keepdim=True)
    if p == math.inf:
        return most.double().log()
    total = relative(size, most).pow(p).sum(dim, keepdim=True, dtype=torch.float64)
    return most.double().log() + total.log() / p
