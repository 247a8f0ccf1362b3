"""Wanda: weight magnitude times input norm."""

from typing import Annotated

from pydantic import Field
from torch import Tensor


def wanda(
    weight: Tensor, input_norm: Tensor, *, alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
) -> Tensor:
    """Score each weight by its magnitude times the norm of its input channel.

    S_ij = |W_ij| * n_j^alpha, with n_j = ||X_j||_2 / sqrt(tokens) the norm of input channel j.

    Args:
        weight: W, (out, in).
        input_norm: n_j per token, (in,). n_j^0 is 1, also where n_j is 0.
        alpha: Exponent of the input norm, at least 0. The default 1 is Wanda; 0 ignores activations.

    Returns:
        Score, (out, in), float32; higher = keep.

    Source:
        Wanda, arXiv:2306.11695, equation 1; alpha other than 1: Symmetric Pruning, arXiv:2501.18980, table 3.

    Differs:
        n_j is divided by sqrt(tokens), a common factor that changes no comparison.
    """
    return weight.float().abs() * input_norm.float().pow(alpha)
