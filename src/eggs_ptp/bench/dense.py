"""Dense products as fast as torch has them: its own `linear`, and oneDNN's with a weight laid out beforehand."""

import torch
from torch import Tensor, nn


class Prepacked(nn.Module):
    """A dense linear layer whose weight is in the layout that oneDNN prefers; what torch's compiler uses frozen."""

    def __init__(self, linear: nn.Linear, batch: int = 1) -> None:
        super().__init__()
        self.laid = prepacked(linear.weight.detach(), batch)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the weight; x (..., in_features) gives (..., out_features)."""
        return prepacked_linear(x, self.laid, self.bias)


def why_not_prepacked(dtype: torch.dtype) -> str | None:
    """The reason for which torch offers no such layout for a type here, or None."""
    if not torch.backends.mkldnn.is_available():
        return "torch was built without oneDNN"
    try:
        prepacked(torch.zeros(16, 16, dtype=dtype), 1)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def prepacked(weight: Tensor, batch: int) -> Tensor:
    """A weight (rows, columns) laid out for products with `batch` inputs."""
    laid: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, batch)
    return laid


def prepacked_linear(x: Tensor, laid: Tensor, bias: Tensor | None = None) -> Tensor:
    """Y = x W^T + b with a weight that is laid out."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, laid, bias, "none", [], "")
    return y
