"""Wanda."""

from typing import Annotated

from pydantic import Field
from torch import Tensor


def wanda(
    weight: Tensor, input_norm: Tensor, *, alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
) -> Tensor:
    """|W_ij| * n_j^alpha, with n_j the norm of input channel j per token.

    `weight` (out, in) and `input_norm` (in,) to (out, in), float32, higher = keep. n_j^0 is 1, also for n_j = 0.

    Source: Wanda, arXiv:2306.11695, eq. 1; alpha other than 1: Symmetric Pruning, arXiv:2501.18980, table 3.
    Differs: n_j is divided by sqrt(tokens), a common factor that no comparison sees.
    """
    return weight.float().abs() * input_norm.float().pow(alpha)
