"""General symmetric Wanda."""

from typing import Literal

import torch
from torch import Tensor


def symwanda(
    weight: Tensor, input_norm: Tensor, output_norm: Tensor, *, form: Literal["sum", "squared"] = "sum"
) -> Tensor:
    """|W_ij| (n_j + y_i), or squared: |W_ij| sqrt(n_j^2 + y_i^2); n_j and y_i as in `wanda` and `owanda`.

    Args:
        weight: (out, in).
        input_norm: n_j, (in,), per token.
        output_norm: y_i, (out,), per token: the sum needs the two on one scale.
        form: "sum", the error of inputs plus that of outputs; "squared", of their squares.

    Returns:
        (out, in), float32, higher = keep.

    Source: Symmetric Pruning, arXiv:2501.18980, lemma 3.1 (sum) and appendix B (squared); that X and Y are the
    layer's inputs and outputs is this project's reading.
    """
    n, y = input_norm.float(), output_norm.float()[:, None]  # (in,), (out, 1)
    return weight.float().abs() * (n + y if form == "sum" else torch.hypot(n, y))
