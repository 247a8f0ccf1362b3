"""The column half of RIA."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.score._relative import relative


def per_input(
    weight: Tensor, input_norm: Tensor, *, alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
) -> Tensor:
    """|W_ij| / c_j * n_j^alpha, with c_j = sum_i |W_ij|: weights relative to those of the same input channel.

    `weight` (out, in) and `input_norm` (in,) to (out, in), float32, higher = keep; a zero column scores 0.

    Source: Symmetric Pruning, arXiv:2501.18980, table 3: "Row-Sum" in the paper's transposed layout (inferred).
    """
    size = weight.float().abs()
    return relative(size, size.sum(0, keepdim=True)) * input_norm.float().pow(alpha)
