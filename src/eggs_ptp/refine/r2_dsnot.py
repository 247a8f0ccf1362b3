"""R2-DSnoT: DSnoT with relative weights and a regularised choice."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.pattern import AnyPattern
from eggs_ptp.refine._swap import SameSign, Skip, StoppingRule, SwapKeys, Variance, per_variance, swap

_Norm = Literal["input", "output", "output_after"]
_Finite = Field(allow_inf_nan=False)


def r2_dsnot(
    mask: Tensor,
    weight: Tensor,
    pattern: AnyPattern,
    input_mean: Tensor,
    input_var: Tensor,
    input_var_within: Tensor,
    input_norm: Tensor,
    role: str,
    *,
    relative_grow: bool = True,
    gamma1: Annotated[float, _Finite] = 0.0,
    relative_prune: bool = False,
    gamma2: Annotated[float, _Finite] = 1e-4,
    p: Annotated[float, Field(gt=0)] | Literal["inf"] = 2.0,
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5,
    reference: Literal["sparse", "dense"] = "sparse",
    norm: _Norm = "input",
    grow: Literal["weighted", "literal"] = "weighted",
    max_cycles: Annotated[int, Field(ge=0)] = 50,
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1,
    sample_tokens: Annotated[int, Field(ge=1)] = 2048,
    power: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
    variance: Variance = "within",
    same_sign: SameSign = "original",
    skip: Skip = "mlp",
) -> Tensor:
    """Swap pruned for kept weights as DSnoT does, ranked by relative weights, an input norm and a regulariser.

    With V the weight under the given mask, R_ij = 1 / ||V_i*||_1 + 1 / ||V_*j||_1 (where 1/0 counts as 0), m_j, v_j and
    n_j the mean, variance and norm of input j per token, T = `sample_tokens` and e_i the error of row i as in `dsnot`:

    - Grown is the pruned weight of largest sign(e_i) W_ij R_ij T m_j / v_j^power + gamma1 ||V_*j||_p. Without the
      regulariser, its key must have the sign of the error.
    - Pruned is the kept weight of lowest |W_ij| R_ij (sqrt(T) n_j)^alpha + gamma2 ||V_*j||_p, among those that DSnoT
      allows.

    Rows stop as in `dsnot`, and the error itself is never relative. With `relative_grow` and `relative_prune` off,
    gamma1 = gamma2 = 0 and alpha = 1 this is `dsnot` after Wanda.

    Args:
        mask: Keep mask, bool (out, in).
        weight: W, (out, in).
        pattern: N:M or unstructured.
        input_mean: m_j per token, (in,).
        input_var: v_j over all tokens, (in,).
        input_var_within: v_j around the mean of each calibration window, averaged, (in,).
        input_norm: n_j per token, (in,).
        role: Role of the matrix in its block, "attention" or "mlp"; see `skip`.
        relative_grow: Use R_ij in the key for growing; on by default. Off sets R_ij = 1.
        gamma1: Weight of the regulariser in the key for growing; 0 by default.
        relative_prune: Use R_ij in the key for pruning; off by default, which sets R_ij = 1.
        gamma2: Weight of the regulariser in the key for pruning; 0.0001 by default.
        p: Order of the regulariser's norm, above 0, or "inf"; 2 by default.
        alpha: Exponent of the input norm in the key for pruning, at least 0; 0.5 by default.
        reference: Weight that R and the regulariser's norm are taken from: "sparse" (default) is V, "dense" is W.
        norm: Vector of the regulariser's norm. "input" (default) is column j; "output" is row i, which is equal for all
            candidates; "output_after" is row i after the swap.
        grow: "weighted" (default) has W_ij in the key for growing; "literal" leaves it out, as the paper prints it,
            which ignores the weight and its sign.
        max_cycles: Most swaps of a row, at least 0; 50 by default.
        threshold: Error at which a row stops, at least 0, summed over `sample_tokens` tokens; 0.1 by default.
        sample_tokens: T, which takes statistics per token to the scale of DSnoT's public code, at least 1; 2048 by
            default.
        power: Exponent of the variance in the key for growing, at least 0; 1 by default. 0 ignores the variance.
        variance: v_j: "within" (default) leaves out how far the means of the windows are apart; "all" includes it.
        same_sign: Whether e_i must keep its sign: "original" (default) for N:M only, "always" or "never".
        skip: Role of matrices whose mask is returned unchanged: "mlp" (default), or "none" to refine all.

    Returns:
        Keep mask, bool (out, in), with as many kept in every row and every group as before.

    Source:
        Symmetric Pruning, arXiv:2501.18980, equations 5 and 6. Defaults are table 10's best for a RIA mask; its best
        for a Wanda mask are relative_grow = false, relative_prune = true, gamma2 = 0.001 (the table swaps the two
        labels).

    Differs:
        The paper prints no W_ij in the rule for growing; `grow` = "literal" follows it.
    """
    if role == skip:
        return mask
    weight = weight.float()
    mean = input_mean * sample_tokens
    magnitude = weight.abs()
    contribution = weight * mean
    reference_magnitude = magnitude if reference == "dense" else magnitude * mask
    selected_variance = input_var_within if variance == "within" else input_var
    expected = contribution if grow == "weighted" else mean.expand_as(contribution)
    gain = per_variance(expected, selected_variance, input_norm, power, "never")
    cost = magnitude * (input_norm * sample_tokens**0.5).pow(alpha)
    row_factor = _reciprocal_or_zero(reference_magnitude.sum(1, keepdim=True))
    column_factor = _reciprocal_or_zero(reference_magnitude.sum(0, keepdim=True))
    relative = row_factor + column_factor  # R, (out, in)
    gain = gain * relative if relative_grow else gain
    cost = cost * relative if relative_prune else cost
    grow_norm, prune_norm = _regulariser_norms(reference_magnitude, magnitude, mask, float(p), norm)
    keys = SwapKeys(gain, cost + gamma2 * prune_norm, gamma1 * grow_norm)
    return swap(mask, contribution, keys, pattern, StoppingRule(max_cycles, threshold, same_sign))


def _reciprocal_or_zero(total: Tensor) -> Tensor:
    """Return 1 / total, and 0 where the total is 0."""
    return torch.where(total > 0, total.reciprocal(), 0.0)


def _regulariser_norms(
    reference_magnitude: Tensor, magnitude: Tensor, mask: Tensor, p: float, norm: _Norm
) -> tuple[Tensor, Tensor]:
    """Return the norms that the regulariser adds to the keys for growing and for pruning."""
    if norm != "output_after":
        dim = 0 if norm == "input" else 1
        current = torch.linalg.vector_norm(reference_magnitude, p, dim=dim, keepdim=True)
        return current, current
    kept = magnitude * mask
    if p == float("inf"):
        largest, second = torch.nn.functional.pad(kept, (0, 1)).topk(2, dim=1).values.split(1, dim=1)
        return torch.maximum(magnitude, largest), torch.where(magnitude >= largest, second, largest)
    total = kept.pow(p).sum(1, keepdim=True)
    return (total + magnitude.pow(p)).pow(1 / p), (total - magnitude.pow(p)).clamp_min(0.0).pow(1 / p)
