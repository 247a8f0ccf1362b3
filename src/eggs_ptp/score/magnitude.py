"""Magnitude of the weights."""

from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """Score each weight by its magnitude.

    S_ij = |W_ij|.

    Args:
        weight: W, (out, in).

    Returns:
        Score, (out, in), float32; higher = keep.

    Source:
        Zhu & Gupta, arXiv:1710.01878.
    """
    return weight.float().abs()
