"""Output Wanda: weight magnitude times output norm."""

from torch import Tensor


def owanda(weight: Tensor, output_norm: Tensor) -> Tensor:
    """Score each weight by its magnitude times the norm of its output.

    S_ij = |W_ij| * y_i, with y_i = ||Y_i||_2 / sqrt(tokens) the norm of the layer's output i. As y_i is a common factor
    of an output row, this ranks weights within a row exactly as magnitude does (an N:M pattern, or group = "row"). It
    differs from magnitude only where weights of different rows are compared (group = "layer" or "block").

    Args:
        weight: W, (out, in).
        output_norm: y_i per token, (out,).

    Returns:
        Score, (out, in), float32; higher = keep.

    Source:
        Symmetric Pruning, arXiv:2501.18980, corollary 3.3. That the paper's Y is the layer's output is this project's
        reading.
    """
    return weight.float().abs() * output_norm.float()[:, None]
