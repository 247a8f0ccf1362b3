"""Relative importance weighted by input and output norms."""

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
    """Score each weight by relative importance, its terms weighted by the input norm and the output norm.

    S_ij = |W_ij| (n_j^alpha / c_j + y_i^output_alpha / r_i), with c_j = sum_i |W_ij|, r_i = sum_j |W_ij|, n_j the norm
    of input channel j and y_i that of output i.

    Args:
        weight: W, (out, in). The term of a zero column or row is 0.
        input_norm: n_j per token, (in,).
        output_norm: y_i per token, (out,): both norms must be on one scale to be added.
        alpha: Exponent of the input norm, at least 0; 1 by default, as in the lemma.
        output_alpha: Exponent of the output norm, at least 0; 1 by default, as in the lemma. With both exponents 0 this
            is relative importance (`ri`).

    Returns:
        Score, (out, in), float32; higher = keep.

    Source:
        Symmetric Pruning, arXiv:2501.18980, lemma 3.7, with the layer's inputs for A and its outputs for B.

    Differs:
        The exponents are this project's; the lemma has 1.
    """
    magnitude = weight.float().abs()
    column_term = relative(magnitude, magnitude.sum(0, keepdim=True)) * input_norm.float().pow(alpha)
    row_term = relative(magnitude, magnitude.sum(1, keepdim=True)) * output_norm.float()[:, None].pow(output_alpha)
    return column_term + row_term
