"""Relative row importance, and the rows that have least of it."""

from typing import Literal

import torch
from torch import Tensor

Importance = Literal["activation", "weight", "score"]

_ELEMENTS = 1 << 18  # entries turned into float64 at a time: what fits a cache is three times as fast


def row_importance(
    score: Tensor, weight: Tensor, input_norm: Tensor, size: int, rri: Importance, alpha: float
) -> Tensor:
    """RRI of each row in each group of `size` columns, in float64 because it decides an order.

    "activation": sum over the group of |W_ij| n_j^alpha, divided by r_i = sum over all j of |W_ij|, 1/0 read as 0.
    "weight": the same with alpha = 0. "score": sum over the group of the score.

    Args:
        score: (out, in).
        weight: (out, in).
        input_norm: n_j, (in,).
        size: M.
        rri: the reading.
        alpha: exponent of the input norm.

    Returns:
        (out, in // size).
    """
    part = max(1, _ELEMENTS // weight.shape[1])
    if rri == "score":
        return torch.cat([_group_sums(rows.double(), size) for rows in torch.split(score, part)])
    factor = input_norm.double() ** (alpha if rri == "activation" else 0.0)
    parts = []
    for rows in torch.split(weight, part):
        magnitude = rows.double().abs()
        length = magnitude.sum(1, keepdim=True)
        parts.append(torch.where(length > 0, _group_sums(magnitude * factor, size) / length, 0.0))
    return torch.cat(parts)


def row_share(score: Tensor, whole: Tensor, size: int) -> Tensor:
    """The part of each row's sum of `whole` that its scores make up in each group of `size` columns, 1/0 read as 0.

    `score`, `whole` (out, in), neither negative; returns (out, in // size) in float64.
    """
    part = max(1, _ELEMENTS // score.shape[1])
    parts = []
    for rows, others in zip(torch.split(score, part), torch.split(whole, part), strict=True):
        length = others.double().sum(1, keepdim=True)
        parts.append(torch.where(length > 0, _group_sums(rows.double(), size) / length, 0.0))
    return torch.cat(parts)


def lowest_rows(importance: Tensor, count: int) -> Tensor:
    """The first `count` places of a stable ascending sort of each column, without sorting the rest.

    Args:
        importance: (rows, columns).
        count: 1 .. rows.

    Returns:
        Row indices, int64 (count, columns).
    """
    columns = importance.T.contiguous()
    lowest = columns.topk(min(count + 1, len(importance)), dim=1, largest=False)
    if not (lowest.values[:, 1:] == lowest.values[:, :-1]).any():
        return lowest.indices[:, :count].T
    # Of equal ones any may have come, in any order.
    threshold = lowest.values[:, count - 1]
    chosen = importance <= threshold
    surplus = chosen.sum(0) - count
    if bool(surplus.any()):
        level = importance == threshold
        chosen &= ~level | (level.cumsum(0, dtype=torch.int32) <= level.sum(0) - surplus)
    rows = chosen.T.nonzero()[:, 1].view(-1, count)  # (columns, count), ascending row indices
    order = importance.T.gather(1, rows).argsort(dim=1, stable=True)
    return rows.gather(1, order).T


def _group_sums(value: Tensor, size: int) -> Tensor:
    # One column after the other: equal rows then have equal sums, which a blocked reduction does not promise.
    first, *others = torch.unflatten(value, 1, (-1, size)).unbind(-1)
    total: Tensor = first.clone()
    for column in others:
        total += column
    return total
