"""Symmetric scores from the weights alone."""

from typing import Literal

import torch
from torch import Tensor


def symmetric(weight: Tensor, *, form: Literal["sum", "squared"] = "sum") -> Tensor:
    """Score each weight by its magnitude times the norms of its column and its row.

    S_ij = |W_ij| (||W_*j||_2 + ||W_i*||_2), or |W_ij| sqrt(||W_*j||_2^2 + ||W_i*||_2^2) when squared.

    Args:
        weight: W, (out, in).
        form: "sum" (default) adds the two norms; "squared" adds their squares and takes the root.

    Returns:
        Score, (out, in), float32; higher = keep.

    Source:
        Symmetric Pruning, arXiv:2501.18980, corollary 3.4 (sum); appendix B and table 1 (squared).
    """
    magnitude = weight.float().abs()
    column = torch.linalg.vector_norm(magnitude, dim=0, keepdim=True)  # (1, in)
    row = torch.linalg.vector_norm(magnitude, dim=1, keepdim=True)  # (out, 1)
    return magnitude * (column + row if form == "sum" else torch.hypot(column, row))
