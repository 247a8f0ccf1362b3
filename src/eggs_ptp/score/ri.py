"""Relative importance."""

from torch import Tensor


def ri(weight: Tensor) -> Tensor:
    """Score each weight by its share of its column's and of its row's total magnitude.

    S_ij = |W_ij| / c_j + |W_ij| / r_i, with c_j = sum_i |W_ij| and r_i = sum_j |W_ij|.

    Args:
        weight: W, (out, in).

    Returns:
        Score, (out, in), float32; higher = keep. A zero column or row scores 0.

    Source:
        RIA, ICLR 2024 (OpenReview Tr0lPx9woF), relative importance.

    Differs:
        A zero column or row scores 0, where the public code divides 0 by 0; float32, where it has float16.
    """
    magnitude = weight.float().abs()
    column = magnitude.sum(0, keepdim=True)  # (1, in)
    row = magnitude.sum(1, keepdim=True)  # (out, 1)
    # All weights under a zero sum are zero, so any divisor other than 0 makes their quotient 0.
    score = magnitude / column.masked_fill(column == 0, 1.0)
    score += magnitude.div_(row.masked_fill(row == 0, 1.0))  # in place: nothing else uses `magnitude`
    return score
