"""Selection by score: the highest scores of each comparison group."""

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
    """Keep the weights with the highest scores.

    For an N:M pattern these are the N highest of every M consecutive inputs of a row, and the options change nothing.
    For an unstructured pattern with sparsity s the lowest share s of each comparison group is pruned. Of equal scores
    the lower column is pruned first.

    Args:
        score: (out, in); higher = keep.
        pattern: N:M, or unstructured with sparsity s.
        group: Weights that are compared with one another: those of an output "row" (default), of the whole "layer", or
            of a "block" of columns, all rows together.
        block_size: Columns of a "block", at least 1; 128 by default. The last block may be narrower.
        count: How many of a group's n weights are pruned. "exact" (default) is round(n * s); "original" is what the
            public code prunes, int(n * s) of a row and one more than that of a layer or block.

    Returns:
        Keep mask, bool (out, in).

    Raises:
        PatternError: The columns cannot be cut into groups of M.

    Source:
        Wanda, arXiv:2306.11695 (row); RIA, ICLR 2024 (layer); SparseGPT, arXiv:2301.00774 (block).
    """
    return keep_top(score, pattern, group=group, block_size=block_size, count=count)
