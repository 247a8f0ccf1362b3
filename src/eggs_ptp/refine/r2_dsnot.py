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
    p: Annotated[float, Field(gt=0)] = 2.0,
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
    `sample_tokens` taking the statistics per token to the scale of the public DSnoT code:
    grown is the pruned weight of largest sign(error_i) W_ij R_ij T m_j / v_j^power + gamma1 ||V_:j||_p;
    pruned is the kept one of lowest |W_ij| R_ij (sqrt(T) n_j)^alpha + gamma2 ||V_:j||_p, among those whose part of the
    output has the sign opposite to the error (N:M: in the group of the one grown, as DSnoT).
    `relative_grow` and `relative_prune` off put R = 1. Everything else, and shapes, as `dsnot`. With both off,
    gamma1 = gamma2 = 0 and alpha = 1, after Wanda, it is DSnoT.

    Readings: the paper prints no W_ij in the rule for growing (`grow="literal"`), which then ignores the weight and its
    sign; `reference="dense"` takes R and the norm from the dense weight; `norm="output"` takes that of row i, equal
    for all candidates, and "output_after" that of row i after the swap. A weight is grown only where its key, but
    for the regulariser, has the sign of the error. The error itself is never relative.

    Source: Symmetric Pruning, arXiv:2501.18980, equations 5 and 6; defaults: Table 10's best for a RIA start. Its best
    for a Wanda start: relative_grow = false, relative_prune = true, gamma2 = 0.001 (the table swaps the two labels).
    """
    if role == skip:
        return mask
    weight = weight.float()
    size = weight.abs()
    part = weight * (input_mean * sample_tokens)
    seen = size if reference == "dense" else size * mask
    relative = _inverse(seen.sum(1, keepdim=True)) + _inverse(seen.sum(0, keepdim=True))  # (out, in)
    spread = input_var_within if variance == "within" else input_var
    gain = part if grow == "weighted" else (input_mean * sample_tokens).expand_as(weight)
    gain = per_variance(gain, spread, input_norm, power, "never")
    cost = size * (input_norm * sample_tokens**0.5).pow(alpha)
    bonus, penalty = _norms(seen, size, mask, p, norm)
    keys = Keys(
        grow=gain * relative if relative_grow else gain,
        prune=(cost * relative if relative_prune else cost) + gamma2 * penalty,
        bonus=gamma1 * bonus,
    )
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
