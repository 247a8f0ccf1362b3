"""Magnitude."""

from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """|W_ij|.

    (out, in) to (out, in), float32, higher = keep.

    Source: Zhu & Gupta, arXiv:1710.01878.
    """
    return weight.float().abs()
