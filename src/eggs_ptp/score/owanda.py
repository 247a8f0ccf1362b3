"""Output Wanda."""

from torch import Tensor


def owanda(weight: Tensor, output_norm: Tensor) -> Tensor:
    """|W_ij| * y_i, with y_i the norm of the layer's own output i per token.

    `weight` (out, in) and `output_norm` (out,) to (out, in), float32, higher = keep. y_i is one factor for a whole
    output row, so within rows (an N:M pattern, or `group = "row"`) this is Magnitude; it says something of its own
    where rows are compared with one another (`group = "layer"` or `"block"`).

    Source: Symmetric Pruning, arXiv:2501.18980, corollary 3.3; that Y is the layer's output is this project's reading.
    """
    return weight.float().abs() * output_norm.float()[:, None]
