"""Fused experts of a checkpoint, read as the matrices of their own that other checkpoints have."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import ModelError
from eggs_ptp.models.folder import read_config
from eggs_ptp.models.moe import LAYOUTS

_GATE_UP, _DOWN = "gate_up_proj", "down_proj"


class _Part(NamedTuple):
    """What a stored tensor has for a name: rows `start` to `stop` of one expert; all of it where `number` is None."""

    tensor: str
    number: int | None = None
    start: int = 0
    stop: int = 0


class Separate(Shards):
    """A folder with fused experts, seen as one that has a matrix for each, by the names of its model type.

    `gate_up_proj` (experts, 2 * inside, width) has an expert's gate before its up, `down_proj` is (experts, width,
    inside). Of a stored tensor no more is read than is asked for.

    Raises:
        ModelError: as `Shards`; a model type whose experts have no names here, or no stack of matrices.
    """

    def __init__(self, folder: Path, ties: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, ties=ties)
        self._stored_as = Shards(folder)
        self._parts = _parts_of(folder, {name: self._stored_as.shape(name) for name in self._stored_as.names})
        taken = {part.tensor for part in self._parts.values()}
        kept = {name: path for name, path in self.where.items() if name not in taken}
        self.where = kept | {name: self._stored_as.where[part.tensor] for name, part in self._parts.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the header; that of a matrix."""
        if (part := self._parts.get(name)) is None:
            return super().shape(name)
        shape = self._stored_as.shape(part.tensor)
        return shape if part.number is None else (part.stop - part.start, shape[2])

    def dtype(self, name: str) -> torch.dtype:
        """Type from the header."""
        part = self._parts.get(name)
        return super().dtype(name) if part is None else self._stored_as.dtype(part.tensor)

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            ModelError: as `Shards.read`.
        """
        if (part := self._parts.get(name)) is None:
            return super().read(name)
        if part.number is None:
            return self._stored_as.read(part.tensor)
        return self._stored_as.rows(part.tensor, part.number, part.number + 1)[0, part.start : part.stop]

    @property
    def as_stored(self) -> Shards:
        """The folder with its fused experts."""
        return self._stored_as

    def to_stored(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of whole blocks with their experts fused again; matrices go as they are put into place."""
        found: dict[str, Tensor] = {}
        for name in [*tensors]:
            part, tensor = self._parts.get(name), tensors.pop(name)
            if part is None or part.number is None:
                found[part.tensor if part else name] = tensor
                continue
            if part.tensor not in found:
                found[part.tensor] = torch.empty(self._stored_as.shape(part.tensor), dtype=tensor.dtype)
            found[part.tensor][part.number, part.start : part.stop] = tensor
        return found


def open_dense(folder: Path, ties: Mapping[str, str] | None = None) -> Shards:
    """The tensors of a dense folder, experts as matrices of their own however it stores them.

    Raises:
        ModelError: as `Shards` and `Separate`.
    """
    shards = Shards(folder, ties=ties)
    return Separate(folder, ties) if any(map(_is_fused, shards.names)) else shards


def _is_fused(name: str) -> bool:
    return name.endswith((f".experts.{_GATE_UP}", f".experts.{_DOWN}"))


def _parts_of(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Part]:
    """What stands for the tensors of the layers that have fused experts, whose names may be another layer's, too."""
    fused = [name for name in shapes if _is_fused(name)]
    model_type = str(read_config(folder)["model_type"])
    if model_type not in LAYOUTS:
        raise ModelError(
            f"{folder}: {fused[0]}: of fused experts only those of {', '.join(LAYOUTS)} can be told apart, "
            f"not those of {model_type}"
        )
    layout, found = LAYOUTS[model_type], dict[str, _Part]()
    layers = {layer: f"{layer.rpartition('.')[0]}.{layout.layer}" for layer in (_layer(name) for name in fused)}
    for name, shape in shapes.items():
        layer = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        if layer is None:
            continue
        if name not in fused:
            found[layers[layer] + name.removeprefix(layer)] = _Part(name)
            continue
        names = (layout.gate, layout.up) if name.endswith(_GATE_UP) else (layout.down,)
        if len(shape) != 3 or shape[1] % len(names):
            raise ModelError(f"{folder}: {name}: expected a stack of matrices, got shape {list(shape)}")
        rows = shape[1] // len(names)
        for number in range(shape[0]):
            for place, own in enumerate(names):
                matrix = f"{layers[layer]}.experts.{number}.{own}.weight"
                found[matrix] = _Part(name, number, place * rows, (place + 1) * rows)
    return found


def _layer(name: str) -> str:
    return name.rpartition(".experts.")[0]
