"""The layer problem of pruning in float64: its loss, its solution on a given support, and its best masks."""

import itertools

import torch
from torch import Tensor


def damped(gram: Tensor, damping: float) -> Tensor:
    gram = gram.double()
    return gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


def losses(weight: Tensor, updated: Tensor, hessian: Tensor) -> Tensor:
    """(w - w') H (w - w')^T of each row."""
    change = weight.double() - updated.double()
    return torch.stack([row @ hessian @ row for row in change])


def on_support(weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """The weights of least loss with a given mask: H_SS w'_S = (H w)_S, solved densely row by row."""
    weight = weight.double()
    best = torch.zeros(weight.shape, dtype=torch.float64)
    for i, row_mask in enumerate(mask):
        kept = row_mask.nonzero().flatten()
        if len(kept):
            best[i, kept] = torch.linalg.solve(hessian[kept][:, kept], (hessian @ weight[i])[kept])
    return best


def group_masks(kept: int, group: int, groups: int) -> list[Tensor]:
    """Every mask of one row that keeps `kept` of every `group`."""
    patterns = [[j in chosen for j in range(group)] for chosen in itertools.combinations(range(group), kept)]
    return [torch.tensor(row).flatten() for row in itertools.product(patterns, repeat=groups)]


def best_loss(row: Tensor, hessian: Tensor, masks: list[Tensor], *, solve: bool) -> float:
    """Least loss of one row over all `masks`: with its kept weights as they are, or solved for."""
    all_losses = []
    for mask in masks:
        pruned = on_support(row[None], mask[None], hessian) if solve else (row * mask)[None]
        all_losses.append(float(losses(row[None], pruned, hessian)))
    return min(all_losses)
