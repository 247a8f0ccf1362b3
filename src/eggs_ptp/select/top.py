"""The highest scores of each comparison group."""

from typing import Literal

from torch import Tensor

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import AnyPattern


def top(
    score: Tensor,
    pattern: AnyPattern,
    *,
    group: Literal["row", "layer"] = "row",
    count: Literal["exact", "original"] = "exact",
) -> Tensor:
    """Keep the N highest of every M inputs; unstructured, all but the share s of each output row or of the layer.

    `score` (out, in) to a mask of that shape, True = keep; equal scores lose the lower column first. For an N:M
    pattern `group` and `count` change nothing. `count="original"` reproduces the number of weights that the public
    code prunes: int(C * s) of a row, one too many of a layer.

    Source: Wanda, arXiv:2306.11695 (row); RIA, ICLR 2024 (layer).
    """
    return keep_top(score, pattern, group=group, count=count)
