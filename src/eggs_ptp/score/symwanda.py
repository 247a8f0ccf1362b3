"""General symmetric Wanda: input and output norms."""

from typing import Literal

import torch
from torch import Tensor


def symwanda(
    weight: Tensor, input_norm: Tensor, output_norm: Tensor, *, form: Literal["sum", "squared"] = "sum"
) -> Tensor:
    """Score each weight by its magnitude times the norms of its input and its output.

    S_ij = |W_ij| (n_j + y_i), or |W_ij| sqrt(n_j^2 + y_i^2) when squared, with n_j the norm of input channel j, as in
    `wanda`, and y_i that of output i, as in `owanda`.

    Args:
        weight: W, (out, in).
        input_norm: n_j per token, (in,).
        output_norm: y_i per token, (out,): both norms must be on one scale to be added.
        form: "sum" (default) adds the input error and the output error; "squared" adds their squares and takes the
            root.

    Returns:
        Score, (out, in), float32; higher = keep.

    Source:
        Symmetric Pruning, arXiv:2501.18980, lemma 3.1 (sum) and appendix B (squared). That the paper's X and Y are the
        layer's inputs and outputs is this project's reading.
    """
    n = input_norm.float()  # (in,)
    y = output_norm.float()[:, None]  # (out, 1)
    return weight.float().abs() * (n + y if form == "sum" else torch.hypot(n, y))
