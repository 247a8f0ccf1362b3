"""Lost: what of a matrix's output went with its pruned weights, by the Gram matrix of its inputs."""

from typing import NamedTuple

import torch
from torch import Tensor


class Lost(NamedTuple):
    """Shares: of the inputs' energy, and of the output energy tr(W G W^T)."""

    dead_activation: float  # sum_(j dead) G_jj / tr G
    dead_output: float  # tr(W_D G_DD W_D^T), D the dead inputs
    output_error: float  # tr((W - W') G (W - W')^T)
    mask_error: float  # the same with W' = W * mask: what the mask alone loses


def energy(weight: Tensor, gram: Tensor) -> float:
    """tr(W G W^T) = ||X W^T||^2 / tokens; `weight` (out, in), `gram` X^T X / tokens (in, in), summed in float64."""
    return float(((weight @ gram) * weight).sum(dtype=torch.float64))


def lost(dense: Tensor, pruned: Tensor, gram: Tensor) -> Lost:
    """Compare a pruned matrix W' with the dense W, both (out, in) in float32, on inputs with `gram` X^T X / tokens.

    Dead inputs are those whose column of W' is zero. Where W gives nothing, all shares of the output are 0.
    """
    dead = ~pruned.any(0)
    inputs, whole = gram.diagonal().double(), energy(dense, gram)
    parts = (
        energy(dense[:, dead], gram[dead][:, dead]),
        energy(dense - pruned, gram),
        energy(dense * (pruned == 0), gram),
    )
    carried = float(inputs[dead].sum() / inputs.sum()) if inputs.any() else 0.0
    return Lost(carried, *((max(0.0, part) / whole if whole > 0 else 0.0) for part in parts))
