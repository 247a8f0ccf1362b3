"""Relative importance with inputs and outputs."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.score._relative import relative


def diagonal(
    weight: Tensor,
    input_norm: Tensor,
    output_norm: Tensor,
    *,
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
    output_alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
) -> Tensor:
    """|W_ij| (n_j^alpha / c_j + y_i^output_alpha / r_i), with c_j = sum_i |W_ij| and r_i = sum_j |W_ij|.

    Args:
        weight: (out, in); of a zero column or row the term is 0.
        input_norm: n_j, (in,), per token.
        output_norm: y_i, (out,), per token: the sum needs the two on one scale.
        alpha: exponent of the input norm.
        output_alpha: exponent of the output norm. Both 0: relative importance.

    Returns:
        (out, in), float32, higher = keep.

    Source: Symmetric Pruning, arXiv:2501.18980, lemma 3.7, with the layer's inputs for A and its outputs for B.
    Differs: the exponents are this project's; the lemma has 1.
    """
    size = weight.float().abs()
    by_column = relative(size, size.sum(0, keepdim=True)) * input_norm.float().pow(alpha)
    by_row = relative(size, size.sum(1, keepdim=True)) * output_norm.float()[:, None].pow(output_alpha)
    return by_column + by_row
