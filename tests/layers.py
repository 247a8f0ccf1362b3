"""A linear layer to prune: its weight, and the Gram matrix of its inputs."""

import torch
from torch import Tensor


def layer(out: int, width: int, *, tokens: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight (out, in), and the Gram matrix of correlated inputs with different scales."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens or 4 * width, width, generator=generator) @ torch.randn(width, width, generator=generator)
    x *= torch.rand(width, generator=generator).mul(2).exp()
    return torch.randn(out, width, generator=generator), x.T @ x / len(x)
