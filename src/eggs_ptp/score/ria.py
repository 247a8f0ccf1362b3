"""Relative importance and activations (RIA)."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from eggs_ptp.score.ri import ri


def ria(
    weight: Tensor, input_norm: Tensor, *, alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
) -> Tensor:
    """Score each weight by its relative importance times a power of its input norm.

    S_ij = (|W_ij| / c_j + |W_ij| / r_i) * n_j^alpha, with c_j = sum_i |W_ij|, r_i = sum_j |W_ij| and
    n_j = ||X_j||_2 / sqrt(tokens) the norm of input channel j.

    Args:
        weight: W, (out, in).
        input_norm: n_j per token, (in,). n_j^0 is 1, also where n_j is 0.
        alpha: Exponent of the input norm, at least 0. The default 0.5 is RIA's; 0 is relative importance alone (`ri`).

    Returns:
        Score, (out, in), float32; higher = keep. A zero column or row scores 0.

    Source:
        RIA, ICLR 2024 (OpenReview Tr0lPx9woF); alpha = 0.5 is its default.

    Differs:
        As `ri`; n_j is divided by sqrt(tokens), a common factor that changes no comparison.
    """
    return ri(weight).mul_(input_norm.float().pow(alpha))
