"""The fastest dense products that torch has: its own `linear`, and oneDNN's with a weight that is reordered before."""

import torch
from torch import Tensor, nn


class PrepackedLinear(nn.Module):
    """A dense linear layer with its weight in oneDNN's preferred layout, as torch's compiler uses it when frozen.

    Args:
        linear: The layer whose weight and bias it takes.
        batch: Number of inputs that the layout is chosen for.
    """

    def __init__(self, linear: nn.Linear, batch: int = 1) -> None:
        super().__init__()
        self.prepacked_weight = prepack(linear.weight.detach(), batch)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the weight; x (..., in_features) gives (..., out_features)."""
        return prepacked_linear(x, self.prepacked_weight, self.bias)


def prepack_unsupported_reason(dtype: torch.dtype) -> str | None:
    """Return why torch offers no prepacked layout for a type on this machine, or None."""
    if not torch.backends.mkldnn.is_available():
        return "torch was built without oneDNN"
    try:
        prepack(torch.zeros(16, 16, dtype=dtype), 1)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def prepack(weight: Tensor, batch: int) -> Tensor:
    """Return a weight (rows, columns) in the layout that oneDNN prefers for products with `batch` inputs."""
    prepacked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, batch)
    return prepacked


def prepacked_linear(x: Tensor, prepacked_weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute y = x W^T + b with a prepacked weight."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, prepacked_weight, bias, "none", [], "")
    return y
