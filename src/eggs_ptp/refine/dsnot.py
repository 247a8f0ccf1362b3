"""DSnoT: swaps that lower each output's expected error, without training."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.core.pattern import AnyPattern, Pattern
from eggs_ptp.refine._swap import Keys, Rule, SameSign, Skip, Variance, ZeroVariance, per_variance, swap


def dsnot(
    mask: Tensor,
    score: Tensor,
    weight: Tensor,
    pattern: AnyPattern,
    input_mean: Tensor,
    input_var: Tensor,
    input_var_within: Tensor,
    input_norm: Tensor,
    role: str,
    *,
    max_cycles: Annotated[int, Field(ge=0)] = 50,
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1,
    sample_tokens: Annotated[int, Field(ge=1)] = 2048,
    power: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
    variance: Variance = "within",
    zero_variance: ZeroVariance = "never",
    same_sign: SameSign = "original",
    skip: Skip = "mlp",
) -> Tensor:
    """Swap pruned for kept weights until |sum over pruned j of W_ij m_j| is at most threshold / sample_tokens.

    m_j is the mean and v_j the variance of input j per token. While the sum of row i is positive (negative), the pruned
    weight with the largest (smallest) W_ij m_j / v_j^power is grown; pruned is, unstructured, the kept weight of lowest
    |W_ij| n_j among those whose W_ij m_j has the opposite sign; N:M, the kept weight of lowest score in its group. Each
    row stops for good at the threshold, after `max_cycles`, without a candidate, or, where `same_sign` applies, before
    the sum changes sign. `mask`, `score`, `weight` (out, in), statistics (in,); returns the mask, True = keep, with
    as many kept in every row and group as before. Weights are not changed.

    `threshold` is on the sum over a sample of `sample_tokens` tokens, the scale of the public code: with 2048 tokens
    0.1 is 5e-5 per token. `skip="mlp"` leaves the start mask of MLP matrices alone, as the public code does unless told
    otherwise, so presumably for the published numbers. `variance="within"` is its statistic, which leaves out how far
    the means of samples lie apart; "all" includes it.

    Source: DSnoT, arXiv:2310.08915, and its public code.
    Differs: there a row that runs out of candidates loses its sparsity; here it stops. Channels that never vary (0/0
    there, grown before all others) are not grown; `zero_variance="first"` does as the code.
    """
    if role == skip:
        return mask
    weight = weight.float()
    part = weight * (input_mean * sample_tokens)
    spread = input_var_within if variance == "within" else input_var
    keys = Keys(
        grow=per_variance(part, spread, input_norm, power, zero_variance),
        prune=score if isinstance(pattern, Pattern) else weight.abs() * input_norm,
    )
    return swap(mask, part, keys, pattern, Rule(max_cycles, threshold, same_sign))
