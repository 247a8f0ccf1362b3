"""stochRIA: relative importance and activations, with sampled sums."""

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
    """Score each weight as RIA does, with the column and row sums estimated from random samples.

    S_ij = (|W_ij| / c_j + |W_ij| / r_i) * n_j^alpha, with c_j and r_i sums of |W_ij| over tau sampled entries of column
    j and row i, and tau = max(1, beta * min(out, in)). Both sums have tau terms, so on a rectangular layer the two
    quotients have the same weight, which they do not have in RIA. With beta = 1 this is RIA on a square layer, and on
    any layer if tau = "own".

    Args:
        weight: W, (out, in). A quotient is 0 where the sample holds zeros only.
        input_norm: n_j per token, (in,).
        generator: Source of randomness, seeded by the seed and the module's name, so that a matrix's samples depend on
            nothing else.
        alpha: Exponent of the input norm, at least 0. The default is 0.5, as in RIA; 0 ignores activations.
        beta: Share of the entries that is sampled, above 0 and up to 1; 0.1 by default.
        column_beta: Share for the sums of columns, above 0 and up to 1; "same" (default) takes `beta`.
        tau: Length that the shares refer to. "common" (default) is the shorter side for both sums; "own" is the length
            of a row for r_i and of a column for c_j.
        rounding: How a sample size is rounded to a whole number: "down" (default), "nearest" or "up".
        draw: "each" (default) draws a sample for each row and each column; "shared" draws one sample of columns for all
            rows and one of rows for all columns, the only way that reads less memory than the full sums.
        sampling: Probability of an entry: "uniform" (default), or proportional to "magnitude" |W_ij| or to "activation"
            |W_ij| n_j.
        replacement: Sample with replacement; off by default.
        rescale: Multiply c_j by out / tau and r_i by in / tau, which estimates the full sums where sampling is uniform;
            off by default.

    Returns:
        Score, (out, in), float32; higher = keep.

    Source:
        Symmetric Pruning, arXiv:2501.18980, equation 4, lemma 3.10, appendix C.4; its section 5 names asymmetric and
        non-uniform sampling as future work. What the paper leaves open is an option, with the likeliest reading as the
        default.
    """
    magnitude = weight.float().abs()
    outs, ins = magnitude.shape
    shorter = min(outs, ins)
    row_samples = _sample_size(beta, ins if tau == "own" else shorter, rounding)
    column_share = beta if column_beta == "same" else column_beta
    column_samples = _sample_size(column_share, outs if tau == "own" else shorter, rounding)
    importance = None if sampling == "uniform" else magnitude
    if sampling == "activation":
        importance = magnitude * input_norm.float()
    sums = functools.partial(sampled_sums, importance=importance, shared=draw == "shared", replacement=replacement)
    row = sums(magnitude, 1, row_samples, generator)  # (out, 1)
    column = sums(magnitude, 0, column_samples, generator)  # (1, in)
    if rescale:
        row = row * (ins / row_samples)
        column = column * (outs / column_samples)
    score = relative(magnitude, column)
    score += relative(magnitude, row)
    score *= input_norm.float().pow(alpha)
    return score


def _sample_size(share: float, length: int, rounding: Rounding) -> int:
    """Return how many of `length` entries are sampled, at least 1."""
    entries = round(share * length, 9)  # 100 * 0.29 is 28.999999999999996 in binary
    return max(1, {"down": math.floor(entries), "nearest": round(entries), "up": math.ceil(entries)}[rounding])
