"""Relative row importance (RRI), and the rows with the least of it."""

from typing import Literal

import torch
from torch import Tensor

Importance = Literal["activation", "weight", "score"]

_ELEMENTS = 1 << 18  # entries converted to float64 at once: batches that fit the cache are three times as fast


def row_importance(
    score: Tensor, weight: Tensor, input_norm: Tensor, size: int, rri: Importance, alpha: float
) -> Tensor:
    """Return the relative importance of each row in each group of M columns, in float64 as it is used for sorting.

    Args:
        score: (out, in).
        weight: (out, in).
        input_norm: n_j, (in,).
        size: M.
        rri: The definition: "activation" sum over the group of |W_ij| n_j^alpha, divided by r_i = sum over all j of
            |W_ij|, with 1/0 taken as 0; "weight" the same with alpha = 0; "score" the sum over the group of the score.
        alpha: Exponent of the input norm.

    Returns:
        (out, in // size).
    """
    batch_rows = max(1, _ELEMENTS // weight.shape[1])
    if rri == "score":
        return torch.cat([_group_sums(rows.double(), size) for rows in torch.split(score, batch_rows)])
    factor = input_norm.double() ** (alpha if rri == "activation" else 0.0)
    importance = []
    for rows in torch.split(weight, batch_rows):
        magnitude = rows.double().abs()
        row_sum = magnitude.sum(1, keepdim=True)
        importance.append(torch.where(row_sum > 0, _group_sums(magnitude * factor, size) / row_sum, 0.0))
    return torch.cat(importance)


def row_share(score: Tensor, total: Tensor, size: int) -> Tensor:
    """Return the share that a row's scores in each group of M columns have of the row's sum of `total`.

    Args:
        score: (out, in), not negative.
        total: (out, in), not negative; each row is summed over all columns. A share x/0 is taken as 0.
        size: M.

    Returns:
        (out, in // size), float64.
    """
    batch_rows = max(1, _ELEMENTS // score.shape[1])
    shares = []
    for score_rows, total_rows in zip(torch.split(score, batch_rows), torch.split(total, batch_rows), strict=True):
        row_sum = total_rows.double().sum(1, keepdim=True)
        shares.append(torch.where(row_sum > 0, _group_sums(score_rows.double(), size) / row_sum, 0.0))
    return torch.cat(shares)


def lowest_rows(importance: Tensor, count: int) -> Tensor:
    """Return the first `count` indices of a stable ascending sort of each column, without sorting the rest.

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
    # Of equal values topk returns any, in any order, so ties are resolved here.
    threshold = lowest.values[:, count - 1]
    chosen = importance <= threshold
    surplus = chosen.sum(0) - count
    if bool(surplus.any()):
        tied = importance == threshold
        chosen &= ~tied | (tied.cumsum(0, dtype=torch.int32) <= tied.sum(0) - surplus)
    rows = chosen.T.nonzero()[:, 1].view(-1, count)  # (columns, count), ascending row indices
    ranking = importance.T.gather(1, rows).argsort(dim=1, stable=True)
    return rows.gather(1, ranking).T


def _group_sums(value: Tensor, size: int) -> Tensor:
    """Sum each group of columns one after the other.

    Equal rows then have equal sums, which a blocked reduction does not guarantee.
    """
    first, *others = torch.unflatten(value, 1, (-1, size)).unbind(-1)
    total: Tensor = first.clone()
    for column in others:
        total += column
    return total
