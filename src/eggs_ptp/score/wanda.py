"""Wanda."""

from torch import Tensor


def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|W_ij| * n_j, with n_j the norm of input channel j per token.

    `weight` (out, in) and `input_norm` (in,) to (out, in), float32, higher = keep.

    Source: Wanda, arXiv:2306.11695, eq. 1.
    Differs: n_j is divided by sqrt(tokens), a common factor that no comparison sees.
    """
    return weight.float().abs() * input_norm.float()
