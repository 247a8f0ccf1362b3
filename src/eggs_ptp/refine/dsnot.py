"""DSnoT: swaps that lower each output's expected error, without training."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.core.pattern import AnyPattern, Pattern
from eggs_ptp.refine._swap import (
    SameSign,
    Skip,
    StoppingRule,
    SwapKeys,
    Variance,
    ZeroVariance,
    per_variance,
    swap,
)


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
    """Swap pruned for kept weights in each row until the row's expected output error is small.

    The error of row i is e_i = T * sum over pruned j of W_ij m_j, with m_j the mean of input j per token, v_j its
    variance and T = `sample_tokens`. While |e_i| > `threshold`, a swap grows one pruned weight and prunes one kept one:

    - Grown is the pruned weight with the largest W_ij m_j / v_j^power if e_i is positive, the smallest if it is
      negative.
    - Pruned is, for an unstructured pattern, the kept weight of lowest |W_ij| n_j among those whose W_ij m_j has the
      opposite sign of e_i; for N:M, the kept weight of lowest score in the same group.

    A row stops for good at the threshold, after `max_cycles` swaps, without a candidate, or, where `same_sign` says so,
    before e_i changes sign. Weights are not changed.

    Args:
        mask: Keep mask, bool (out, in).
        score: (out, in); higher = keep. Decides what is pruned in a group of an N:M pattern.
        weight: W, (out, in).
        pattern: N:M or unstructured.
        input_mean: m_j per token, (in,).
        input_var: v_j over all tokens, (in,).
        input_var_within: v_j around the mean of each calibration window, averaged, (in,).
        input_norm: n_j per token, (in,).
        role: Role of the matrix in its block, "attention" or "mlp"; see `skip`.
        max_cycles: Most swaps of a row, at least 0; 50 by default.
        threshold: Error at which a row stops, at least 0, on the scale of the public code: a sum over `sample_tokens`
            tokens. The default 0.1 with 2048 tokens is 5e-5 per token.
        sample_tokens: T, tokens that `threshold` refers to, at least 1; 2048 by default.
        power: Exponent of the variance in the key for growing, at least 0; 1 by default. 0 ignores the variance.
        variance: v_j: "within" (default) is the public code's, which leaves out how far the means of the windows are
            apart; "all" includes it.
        zero_variance: Channels that never vary: "never" (default) grows none of their weights; "first" grows them
            before all others, as the public code does with its 0/0.
        same_sign: Whether e_i must keep its sign: "original" (default) for N:M only, as in the public code, "always" or
            "never".
        skip: Role of matrices whose mask is returned unchanged. "mlp" (default) is what the public code does unless
            set otherwise, so presumably what the published numbers have; "none" refines all matrices.

    Returns:
        Keep mask, bool (out, in), with as many kept in every row and every group as before.

    Source:
        DSnoT, arXiv:2310.08915, and its public code.

    Differs:
        In the public code a row that runs out of candidates loses its sparsity; here it stops. Channels that never vary
        (0/0 there, grown before all others) are not grown, unless `zero_variance` is "first".
    """
    if role == skip:
        return mask
    weight = weight.float()
    contribution = weight * (input_mean * sample_tokens)
    selected_variance = input_var_within if variance == "within" else input_var
    keys = SwapKeys(
        grow=per_variance(contribution, selected_variance, input_norm, power, zero_variance),
        prune=score if isinstance(pattern, Pattern) else weight.abs() * input_norm,
    )
    return swap(mask, contribution, keys, pattern, StoppingRule(max_cycles, threshold, same_sign))
