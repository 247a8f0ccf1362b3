"""Weights relative to the sum of their column or row."""

import math

from torch import Tensor


def relative(magnitude: Tensor, total: Tensor) -> Tensor:
    """Return magnitude / total, and 0 where the total is 0.

    Args:
        magnitude: |W|, (out, in).
        total: Sums or norms to divide by, broadcast to `magnitude`: (1, in) or (out, 1).
    """
    return magnitude / total.masked_fill(total == 0, math.inf)
