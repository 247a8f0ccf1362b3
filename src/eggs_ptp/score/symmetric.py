"""Symmetric scores from the weights alone."""

from typing import Literal

import torch
from torch import Tensor


def symmetric(weight: Tensor, *, form: Literal["sum", "squared"] = "sum") -> Tensor:
    """|W_ij| (||W_*j||_2 + ||W_i*||_2), or squared: |W_ij| sqrt(||W_*j||_2^2 + ||W_i*||_2^2).

    Args:
        weight: (out, in).
        form: "sum" of the norms of the weight's column and row, or the root of the sum of their "squared" norms.

    Returns:
        (out, in), float32, higher = keep.

    Source: Symmetric Pruning, arXiv:2501.18980, corollary 3.4 (sum); appendix B and table 1 (squared).
    """
    size = weight.float().abs()
    column, row = (torch.linalg.vector_norm(size, dim=dim, keepdim=True) for dim in (0, 1))  # (1, in), (out, 1)
    return size * (column + row if form == "sum" else torch.hypot(column, row))
