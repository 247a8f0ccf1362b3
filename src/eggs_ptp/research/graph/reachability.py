"""Reachability: from which channels a path of nonzero weights leads to which, through consecutive matrices."""

import torch
from torch import Tensor


def compose_reachability(first: Tensor, second: Tensor) -> Tensor:
    """Boolean matrix product: R_ij is true if some k has first_kj and second_ik.

    An input with d connections meets every output with k connections if d + k > mid, so such inputs need no product.
    The others use a float32 product, which counts exactly up to 2^24.

    Args:
        first: Bool (mid, in).
        second: Bool (out, mid).

    Returns:
        Bool (out, in).
    """
    middle = len(first)
    input_degree = first.sum(0)
    output_degree = second.sum(1)
    live_outputs = output_degree > 0
    reached = torch.zeros(len(second), first.shape[1], dtype=torch.bool, device=first.device)
    if not live_outputs.any():
        return reached
    reaches_all = input_degree + output_degree[live_outputs].min() > middle
    reached[:, reaches_all] = live_outputs.unsqueeze(1)
    rest = ~reaches_all & (input_degree > 0)
    if rest.any():
        reached[:, rest] = second.float() @ first[:, rest].float() > 0
    return reached


def with_residual(reached: Tensor) -> Tensor:
    """Add the residual connection, by which every channel reaches itself; bool (channels, channels)."""
    return reached | torch.eye(len(reached), dtype=torch.bool, device=reached.device)


def share(reached: Tensor) -> float:
    """Return the share of all (input, output) pairs that a path connects."""
    return float(reached.float().mean(dtype=torch.float64))
