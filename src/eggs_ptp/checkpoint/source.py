"""Source: the model that a folder was pruned from, in the channel order that the folder is in."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.checkpoint.draft import MANIFEST, ORDERS
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError, MethodError
from eggs_ptp.models.fold import Fold
from eggs_ptp.models.load import load_family

_ELEMENTS = 1 << 16  # weights in float64 at a time: they stay in the cache


class Retained(NamedTuple):
    """What of the dense matrix W the mask m keeps, as shares, and what they are shares of."""

    magnitude: float  # sum |W| m / sum |W|
    energy: float  # sum W^2 m / sum W^2
    dead_energy: float  # sum of W^2 over dead inputs / sum W^2
    dense_magnitude: float
    dense_energy: float


class Source(Shards):
    """The tensors of `against`, put into the orders that were folded into `folder`: place by place the same channels.

    Raises:
        CheckpointError: orders were folded, but they are not there or are none.
        ModelError: as `Shards`.
    """

    def __init__(self, folder: Path, against: Path, ties: dict[str, str] | None = None) -> None:
        super().__init__(against, ties=ties)
        self.fold: Fold | None = None
        if not (folder / MANIFEST).exists() or read_manifest(folder).get("orders") != "fold":
            return
        if not (folder / ORDERS).exists():
            raise CheckpointError(f"{folder}: its orders were folded into the weights, but {ORDERS} is missing")
        orders = Shards.of_file(folder / ORDERS)
        try:
            self.fold = Fold(*load_family(folder), {name: orders.read(name) for name in orders.names})
        except MethodError as error:
            raise CheckpointError(f"{folder}: {ORDERS}: {error}") from error

    def read(self, name: str) -> Tensor:
        """Read one tensor, in the folder's order.

        Raises:
            ModelError: as `Shards.read`.
            CheckpointError: an order does not fit the tensor.
        """
        tensor = super().read(name)
        if self.fold is None:
            return tensor
        for order, size in zip(self.fold.axes(name), tensor.shape, strict=False):
            if order is not None and len(order) != size:
                raise CheckpointError(f"{ORDERS}: an order of {name} has {len(order)} channels, expected {size}")
        return self.fold.apply(name, tensor)

    def matrix(self, matrix: dict[str, Any], weight: Tensor, mask: Tensor) -> Tensor:
        """The dense matrix (out, in) of a pruned one.

        Raises:
            CheckpointError: another shape, or weights that were kept as they were and are not these.
            NumericsError: it holds NaN or infinity.
        """
        name, where = f"{matrix['name']}.weight", self.folder
        shape = weight.T.shape if matrix.get("transposed") else weight.shape
        if self.shape(name) != tuple(shape):
            raise CheckpointError(f"{where}: {name} is {self.shape(name)}, expected {tuple(shape)}")
        dense = self.read_sound(name)
        dense = dense.T if matrix.get("transposed") else dense
        if not matrix.get("updated", True) and not bool(((dense == weight) | ~mask).all()):
            raise CheckpointError(f"{where}: {name} has other weights than were kept; pass what the folder was made of")
        return dense


def retained(dense: Tensor, mask: Tensor) -> Retained:
    """Sum up, in float64, what a mask keeps of a dense matrix, both (out, in)."""
    dead = ~mask.any(0)
    sums = torch.zeros(5, dtype=torch.float64)
    rows = max(1, _ELEMENTS // dense.shape[1])
    for part, kept in zip(dense.split(rows), mask.split(rows), strict=True):
        size = part.double().abs()
        left, gone = size * kept, size[:, dead].flatten() if dead.any() else size.new_zeros(0)
        energies = (torch.dot(each.flatten(), each.flatten()) for each in (left, gone, size))
        sums += torch.stack([left.sum(), size.sum(), *energies])
    magnitude, all_magnitude, energy, dead_energy, all_energy = sums.tolist()
    return Retained(
        magnitude / all_magnitude if all_magnitude else 1.0,
        energy / all_energy if all_energy else 1.0,
        dead_energy / all_energy if all_energy else 0.0,
        all_magnitude,
        all_energy,
    )
