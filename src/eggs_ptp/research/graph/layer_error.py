"""The share of a layer's output that pruning lost, from the Gram matrix of the layer's inputs."""

from typing import NamedTuple

import torch
from torch import Tensor


class LayerErrors(NamedTuple):
    """Errors of a pruned matrix W' against the dense W; m is its mask, D its dead inputs, G the Gram matrix.

    Attributes:
        dead_activation: Share of the inputs' energy on dead inputs, sum_(j in D) G_jj / tr G.
        dead_output: Share of the output energy that came from dead inputs alone, tr(W_D G_DD W_D^T) / tr(W G W^T).
        output_error: tr((W - W') G (W - W')^T) / tr(W G W^T).
        mask_error: The same with W * m in place of W': what the mask loses without any weight update.
    """

    dead_activation: float
    dead_output: float
    output_error: float
    mask_error: float


def output_energy(weight: Tensor, gram: Tensor) -> float:
    """tr(W G W^T) = ||X W^T||^2 / tokens, summed in float64; `weight` (out, in), `gram` X^T X / tokens (in, in)."""
    return float(((weight @ gram) * weight).sum(dtype=torch.float64))


def layer_errors(dense: Tensor, pruned: Tensor, gram: Tensor) -> LayerErrors:
    """Compare a pruned matrix with the dense one on inputs with a given Gram matrix.

    An input is dead if its column of the pruned matrix is zero. If the dense output is zero, so are all shares of it.

    Args:
        dense: W (out, in), float32.
        pruned: W' (out, in), float32.
        gram: G = X^T X / tokens (in, in).
    """
    dead = ~pruned.any(0)
    input_energy = gram.diagonal().double()
    dense_energy = output_energy(dense, gram)
    lost_energies = (
        output_energy(dense[:, dead], gram[dead][:, dead]),
        output_energy(dense - pruned, gram),
        output_energy(dense * (pruned == 0), gram),
    )
    dead_activation = float(input_energy[dead].sum() / input_energy.sum()) if input_energy.any() else 0.0
    shares = (max(0.0, energy) / dense_energy if dense_energy > 0 else 0.0 for energy in lost_energies)
    return LayerErrors(dead_activation, *shares)
