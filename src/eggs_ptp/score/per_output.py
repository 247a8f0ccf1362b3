"""The row term of RIA."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.score._relative import relative


def per_output(
    weight: Tensor, input_norm: Tensor, *, alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
) -> Tensor:
    """Score each weight relative to the weights of the same output neuron.

    S_ij = |W_ij| / r_i * n_j^alpha, with r_i = sum_j |W_ij| and n_j the norm of input channel j. As r_i is a common
    factor of an output row, this ranks weights within a row exactly as Wanda with the same alpha does (an N:M pattern,
    or group = "row").

    Args:
        weight: W, (out, in).
        input_norm: n_j per token, (in,).
        alpha: Exponent of the input norm, at least 0. The default is 0.5, as in RIA; 0 ignores activations.

    Returns:
        Score, (out, in), float32; higher = keep. A zero row scores 0.

    Source:
        Symmetric Pruning, arXiv:2501.18980, table 3: "Col-Sum" in the paper's transposed layout (inferred).
    """
    magnitude = weight.float().abs()
    return relative(magnitude, magnitude.sum(1, keepdim=True)) * input_norm.float().pow(alpha)
