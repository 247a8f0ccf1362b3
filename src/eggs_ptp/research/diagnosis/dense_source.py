"""The dense model that a folder was pruned from, with the channel permutations of that folder applied to it."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.checkpoint.recorded_fold import read_fold
from eggs_ptp.checkpoint.staging import ORDERS
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CheckpointError

_ELEMENTS = 1 << 16  # weights converted to float64 at a time, so that they stay in the processor's cache


class Retained(NamedTuple):
    """What a mask m keeps of the dense matrix W.

    Attributes:
        magnitude: sum |W| m / sum |W|.
        energy: sum W^2 m / sum W^2.
        dead_energy: Sum of W^2 over dead inputs / sum W^2.
        dense_magnitude: sum |W|.
        dense_energy: sum W^2.
    """

    magnitude: float
    energy: float
    dead_energy: float
    dense_magnitude: float
    dense_energy: float


class DenseSource(CheckpointReader):
    """Reads the dense model with every tensor in the channel order of the pruned folder.

    Args:
        folder: The pruned folder, whose folded permutations are applied.
        against: The dense model.
        ties: As for `CheckpointReader`.

    Raises:
        CheckpointError: Permutations were folded, but they are missing or invalid.
        ModelError: See `CheckpointReader`.
    """

    def __init__(self, folder: Path, against: Path, ties: dict[str, str] | None = None) -> None:
        super().__init__(against, ties=ties)
        self._fold = read_fold(folder)

    def read(self, name: str) -> Tensor:
        """Read one tensor, in the folder's channel order.

        Raises:
            ModelError: See `CheckpointReader.read`.
            CheckpointError: A permutation does not fit the tensor.
        """
        tensor = super().read(name)
        if self._fold is None:
            return tensor
        for permutation, size in zip(self._fold.axes(name), tensor.shape, strict=False):
            if permutation is not None and len(permutation) != size:
                raise CheckpointError(
                    f"{ORDERS}: a permutation of {name} has {len(permutation)} channels, expected {size}"
                )
        return self._fold.apply(name, tensor)

    def matrix(self, matrix: dict[str, Any], weight: Tensor, mask: Tensor) -> Tensor:
        """Read the dense matrix (out, in) that belongs to a pruned one.

        Args:
            matrix: Its entry in the record.
            weight: The pruned matrix (out, in).
            mask: Its nonzero weights.

        Raises:
            CheckpointError: The shapes differ, or no step updated the kept weights, but they differ.
            NumericsError: The dense matrix holds NaN or infinity.
        """
        name = f"{matrix['name']}.weight"
        shape = weight.T.shape if matrix.get("transposed") else weight.shape
        if self.shape(name) != tuple(shape):
            raise CheckpointError(f"{self.folder}: {name} is {self.shape(name)}, expected {tuple(shape)}")
        dense = self.read_sound(name)
        dense = dense.T if matrix.get("transposed") else dense
        if not matrix.get("updated", True) and not bool(((dense == weight) | ~mask).all()):
            raise CheckpointError(
                f"{self.folder}: {name} differs from the kept weights; pass the model that the folder was pruned from"
            )
        return dense


def retained(dense: Tensor, mask: Tensor) -> Retained:
    """Sum up, in float64, what a mask keeps of a dense matrix, both (out, in)."""
    dead_inputs = ~mask.any(0)
    has_dead_inputs = bool(dead_inputs.any())
    sums = torch.zeros(5, dtype=torch.float64)
    rows = max(1, _ELEMENTS // dense.shape[1])
    for dense_rows, mask_rows in zip(dense.split(rows), mask.split(rows), strict=True):
        magnitude = dense_rows.double().abs()
        kept = magnitude * mask_rows
        dead = magnitude[:, dead_inputs].flatten() if has_dead_inputs else magnitude.new_zeros(0)
        energies = (torch.dot(part.flatten(), part.flatten()) for part in (kept, dead, magnitude))
        sums += torch.stack([kept.sum(), magnitude.sum(), *energies])
    kept_magnitude, dense_magnitude, kept_energy, dead_energy, dense_energy = sums.tolist()
    return Retained(
        magnitude=kept_magnitude / dense_magnitude if dense_magnitude else 1.0,
        energy=kept_energy / dense_energy if dense_energy else 1.0,
        dead_energy=dead_energy / dense_energy if dense_energy else 0.0,
        dense_magnitude=dense_magnitude,
        dense_energy=dense_energy,
    )
