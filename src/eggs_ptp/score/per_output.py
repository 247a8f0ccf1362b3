"""The row half of RIA."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.score._relative import relative


def per_output(
    weight: Tensor, input_norm: Tensor, *, alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
) -> Tensor:
    """|W_ij| / r_i * n_j^alpha, with r_i = sum_j |W_ij|: weights relative to those of the same output neuron.

    `weight` (out, in) and `input_norm` (in,) to (out, in), float32, higher = keep; a zero row scores 0. r_i is one
    factor for a whole output row, so within rows (an N:M pattern, or `group = "row"`) this is Wanda with that alpha.

    Source: Symmetric Pruning, arXiv:2501.18980, table 3: "Col-Sum" in the paper's transposed layout (inferred).
    """
    size = weight.float().abs()
    return relative(size, size.sum(1, keepdim=True)) * input_norm.float().pow(alpha)
