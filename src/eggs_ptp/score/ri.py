"""Relative importance."""

from torch import Tensor


def ri(weight: Tensor) -> Tensor:
    """|W_ij| / c_j + |W_ij| / r_i, with c_j = sum_i |W_ij| and r_i = sum_j |W_ij|.

    (out, in) to (out, in), float32, higher = keep.

    Source: RIA, ICLR 2024 (OpenReview Tr0lPx9woF), relative importance.
    Differs: a zero column or row scores 0 where the public code has 0/0; float32 where it has float16.
    """
    size = weight.float().abs()
    column, row = size.sum(0, keepdim=True), size.sum(1, keepdim=True)  # (1, in), (out, 1)
    # A zero sum stands over zero weights only, so any divisor but 0 makes their quotient 0.
    score = size / column.masked_fill(column == 0, 1.0)
    score += size.div_(row.masked_fill(row == 0, 1.0))  # in place: `size` is this function's own
    return score
