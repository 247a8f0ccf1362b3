"""Reach: from which channels a path leads to which, through one matrix after another."""

import torch
from torch import Tensor


def through(first: Tensor, second: Tensor) -> Tensor:
    """R_ij: whether some k has first_kj and second_ik; bool (mid, in), (out, mid) to (out, in).

    Where an input has d connections, and every output that has any k of them, d + k > mid makes them meet; only the
    other inputs are looked at, by a product in float32, which counts exactly up to 2^24.
    """
    middle = len(first)
    degree, reads = first.sum(0), second.sum(1)
    live = reads > 0
    found = torch.zeros(len(second), first.shape[1], dtype=torch.bool, device=first.device)
    if not live.any():
        return found
    sure = degree + reads[live].min() > middle
    found[:, sure] = live.unsqueeze(1)
    rest = ~sure & (degree > 0)
    if rest.any():
        found[:, rest] = second.float() @ first[:, rest].float() > 0
    return found


def beside(reached: Tensor) -> Tensor:
    """The same with a residual connection: every channel reaches itself too; bool (channels, channels)."""
    return reached | torch.eye(len(reached), dtype=torch.bool, device=reached.device)


def share(reached: Tensor) -> float:
    """Of all pairs of an input and an output, how many a path joins."""
    return float(reached.float().mean(dtype=torch.float64))
