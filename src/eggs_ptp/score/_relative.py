"""A weight relative to a sum that it belongs to."""

import math

from torch import Tensor


def relative(size: Tensor, total: Tensor) -> Tensor:
    """The quotient size / total, with 1/0 read as 0: what has no sum has no share of it."""
    return size / total.masked_fill(total == 0, math.inf)
