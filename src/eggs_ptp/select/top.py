"""The highest scores of each comparison group."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import AnyPattern


def top(
    score: Tensor,
    pattern: AnyPattern,
    *,
    group: Literal["row", "layer", "block"] = "row",
    block_size: Annotated[int, Field(gt=0)] = 128,
    count: Literal["exact", "original"] = "exact",
) -> Tensor:
    """Keep the N highest of every M inputs; unstructured, all but the share s of each comparison group.

    `score` (out, in) to a mask of that shape, True = keep; equal scores lose the lower column first. For an N:M
    pattern the options change nothing.

    Args:
        score: (out, in), higher = keep.
        pattern: N:M, or the share s.
        group: weights compared with one another: an output "row", the whole "layer", or a "block" of columns, all rows.
        block_size: columns of a block; the last one may be narrower.
        count: pruned of n weights: "exact", round(n * s); "original", as many as the public code, int(n * s) of a
            row, one more of a layer or block.

    Source: Wanda, arXiv:2306.11695 (row); RIA, ICLR 2024 (layer); SparseGPT, arXiv:2301.00774 (block).
    """
    return keep_top(score, pattern, group=group, block_size=block_size, count=count)
