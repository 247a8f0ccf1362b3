"""R2-DSnoT: DSnoT with relative weights and a regularised choice."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from eggs_ptp.core.pattern import AnyPattern
from eggs_ptp.refine._swap import Keys, Rule, SameSign, Skip, Variance, per_variance, swap

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
    """DSnoT whose candidates are ordered by relative weights, a power of the input norm, and a regulariser.

    With V the weight as the start mask leaves it, R_ij = 1 / ||V_i:||_1 + 1 / ||V_:j||_1 (1/0 read as 0), and T =
    `sample_tokens`, which takes the statistics per token to the scale of DSnoT's public code:
    grown is the pruned weight of largest sign(error_i) W_ij R_ij T m_j / v_j^power + gamma1 ||V_:j||_p;
    pruned is the kept one of lowest |W_ij| R_ij (sqrt(T) n_j)^alpha + gamma2 ||V_:j||_p, among those DSnoT allows.
    `relative_grow` and `relative_prune` off put R = 1; `p` may be inf. Shapes, `max_cycles`, `threshold`, `variance`,
    `same_sign` and `skip` as `dsnot`, which it is after Wanda with both off, gamma1 = gamma2 = 0 and alpha = 1.

    Readings: the paper prints no W_ij in the rule for growing (`grow="literal"`), which then ignores the weight and its
    sign; `reference="dense"` takes R and the norm from the dense weight; `norm="output"` takes that of row i, equal for
    all candidates, "output_after" that of row i after the swap. A weight is grown only where its key, but for the
    regulariser, has the sign of the error. The error itself is never relative.

    Source: Symmetric Pruning, arXiv:2501.18980, equations 5 and 6; defaults: Table 10's best for a RIA start. Its best
    for a Wanda start: relative_grow = false, relative_prune = true, gamma2 = 0.001 (the table swaps the two labels).
    """
    if role == skip:
        return mask
    weight, mean = weight.float(), input_mean * sample_tokens
    size, part = weight.abs(), weight * mean
    seen = size if reference == "dense" else size * mask
    spread = input_var_within if variance == "within" else input_var
    gain = per_variance(part if grow == "weighted" else mean.expand_as(part), spread, input_norm, power, "never")
    cost = size * (input_norm * sample_tokens**0.5).pow(alpha)
    relative = _inverse(seen.sum(1, keepdim=True)) + _inverse(seen.sum(0, keepdim=True))  # (out, in)
    gain = gain * relative if relative_grow else gain
    cost = cost * relative if relative_prune else cost
    bonus, penalty = _norms(seen, size, mask, float(p), norm)
    keys = Keys(gain, cost + gamma2 * penalty, gamma1 * bonus)
    return swap(mask, part, keys, pattern, Rule(max_cycles, threshold, same_sign))


def _inverse(size: Tensor) -> Tensor:
    return torch.where(size > 0, size.reciprocal(), 0.0)


def _norms(seen: Tensor, size: Tensor, mask: Tensor, p: float, norm: _Norm) -> tuple[Tensor, Tensor]:
    """The norm that the regulariser adds where a weight is grown, and where it is pruned."""
    if norm != "output_after":
        same = torch.linalg.vector_norm(seen, p, dim=0 if norm == "input" else 1, keepdim=True)
        return same, same
    kept = size * mask
    if p == float("inf"):
        first, second = torch.nn.functional.pad(kept, (0, 1)).topk(2, dim=1).values.split(1, dim=1)
        return torch.maximum(size, first), torch.where(size >= first, second, first)
    total = kept.pow(p).sum(1, keepdim=True)
    return (total + size.pow(p)).pow(1 / p), (total - size.pow(p)).clamp_min(0.0).pow(1 / p)
