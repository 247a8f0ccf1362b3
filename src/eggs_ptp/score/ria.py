"""Relative importance and activations."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.score.ri import ri


def ria(
    weight: Tensor, input_norm: Tensor, *, alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
) -> Tensor:
    """(|W_ij| / c_j + |W_ij| / r_i) * n_j^alpha, with n_j the norm of input channel j per token.

    `weight` (out, in) and `input_norm` (in,) to (out, in), float32, higher = keep. n_j^0 is 1, also for n_j = 0.

    Source: RIA, ICLR 2024 (OpenReview Tr0lPx9woF); alpha = 0.5 is its default.
    Differs: as `ri`; n_j is divided by sqrt(tokens), a common factor that no comparison sees.
    """
    return ri(weight).mul_(input_norm.float().pow(alpha))
