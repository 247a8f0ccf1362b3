"""Relative importance and activations, with sampled sums."""

import functools
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.score._relative import relative
from eggs_ptp.score._sample import sampled_sums

Rounding = Literal["down", "nearest", "up"]
Share = Annotated[float, Field(gt=0, le=1)]


def stochria(
    weight: Tensor,
    input_norm: Tensor,
    generator: torch.Generator,
    *,
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5,
    beta: Share = 0.1,
    column_beta: Share | Literal["same"] = "same",
    tau: Literal["common", "own"] = "common",
    rounding: Rounding = "down",
    draw: Literal["each", "shared"] = "each",
    sampling: Literal["uniform", "magnitude", "activation"] = "uniform",
    replacement: bool = False,
    rescale: bool = False,
) -> Tensor:
    """(|W_ij| / c_j + |W_ij| / r_i) * n_j^alpha, with c_j and r_i sums of |W_ij| over tau sampled entries.

    tau = max(1, beta * min(out, in)). Both sums have tau terms, so on a rectangular layer the two quotients weigh
    alike, which RIA's do not; beta = 1 is RIA on a square, and with tau = "own" on any layer.

    Args:
        weight: (out, in); the quotient by a sample of zeros is 0.
        input_norm: n_j, (in,), per token.
        generator: keyed by seed and module, so that a matrix's samples depend on nothing else.
        alpha: exponent of the input norm.
        beta: share of the entries that is sampled.
        column_beta: another share for the columns' sums.
        tau: "common", a share of the shorter side; "own", of a row for r_i and of a column for c_j.
        rounding: of tau to a whole number.
        draw: "each" row and column has a sample of its own; "shared", one sample of columns serves all rows, and one
            of rows all columns, the only way that reads less memory than the full sums.
        sampling: "uniform", or with chances in proportion to "magnitude" |W_ij| or "activation" |W_ij| n_j.
        replacement: draw with replacement.
        rescale: multiply c_j by out / tau and r_i by in / tau, estimates of the full sums where sampling is uniform.

    Returns:
        (out, in), float32, higher = keep.

    Source: Symmetric Pruning, arXiv:2501.18980, equation 4, lemma 3.10, appendix C.4; its section 5 names asymmetric
    and non-uniform sampling as future work. What the paper leaves open is an option; defaults are the likeliest
    reading.
    """
    size = weight.float().abs()
    outs, ins = size.shape
    shorter = min(outs, ins)
    in_row = _tau(beta, ins if tau == "own" else shorter, rounding)
    in_column = _tau(beta if column_beta == "same" else column_beta, outs if tau == "own" else shorter, rounding)
    importance = None if sampling == "uniform" else size
    if sampling == "activation":
        importance = size * input_norm.float()
    sums = functools.partial(sampled_sums, importance=importance, shared=draw == "shared", replacement=replacement)
    row = sums(size, 1, in_row, generator)  # (out, 1)
    column = sums(size, 0, in_column, generator)  # (1, in)
    if rescale:
        row, column = row * (ins / in_row), column * (outs / in_column)
    score = relative(size, column)
    score += relative(size, row)
    score *= input_norm.float().pow(alpha)
    return score


def _tau(share: float, length: int, rounding: Rounding) -> int:
    entries = round(share * length, 9)  # 100 * 0.29 is 28.999999999999996 in binary
    return max(1, {"down": math.floor(entries), "nearest": round(entries), "up": math.ceil(entries)}[rounding])
