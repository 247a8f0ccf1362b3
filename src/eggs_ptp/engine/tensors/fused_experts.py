"""Fused experts of a checkpoint, read as one matrix per expert and projection."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import ModelError
from eggs_ptp.models.folder import read_config
from eggs_ptp.models.moe import LAYOUTS

_GATE_UP, _DOWN = "gate_up_proj", "down_proj"


class _Part(NamedTuple):
    """Which part of a stored tensor a name stands for: rows `start` to `stop` of one expert, or all if that is None."""

    tensor: str
    expert: int | None = None
    start: int = 0
    stop: int = 0


class UnfusedReader(CheckpointReader):
    """Reads a checkpoint with fused experts as if it had one matrix per expert and projection.

    `gate_up_proj` (experts, 2 * inner, channels) has an expert's gate before its up projection, `down_proj` is
    (experts, channels, inner). No more of a stored tensor is read than requested.

    Args:
        folder: The checkpoint.
        ties: See `CheckpointReader`.

    Raises:
        ModelError: See `CheckpointReader`; the model type is not in `models.moe.LAYOUTS`, or a fused tensor is no stack
            of matrices.
    """

    def __init__(self, folder: Path, ties: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, ties=ties)
        self._fused = CheckpointReader(folder)
        self._parts = _parts_of(folder, {name: self._fused.shape(name) for name in self._fused.names})
        fused = {part.tensor for part in self._parts.values()}
        others = {name: path for name, path in self.where.items() if name not in fused}
        self.where = others | {name: self._fused.where[part.tensor] for name, part in self._parts.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a matrix, from the header."""
        if (part := self._parts.get(name)) is None:
            return super().shape(name)
        shape = self._fused.shape(part.tensor)
        return shape if part.expert is None else (part.stop - part.start, shape[2])

    def dtype(self, name: str) -> torch.dtype:
        """Return the type, from the header."""
        part = self._parts.get(name)
        return super().dtype(name) if part is None else self._fused.dtype(part.tensor)

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            ModelError: See `CheckpointReader.read`.
        """
        if (part := self._parts.get(name)) is None:
            return super().read(name)
        if part.expert is None:
            return self._fused.read(part.tensor)
        return self._fused.rows(part.tensor, part.expert, part.expert + 1)[0, part.start : part.stop]

    @property
    def as_stored(self) -> CheckpointReader:
        """The same checkpoint with its fused experts."""
        return self._fused

    def to_stored(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of whole blocks with their experts fused again; `tensors` is emptied to save memory."""
        stored: dict[str, Tensor] = {}
        for name in [*tensors]:
            part = self._parts.get(name)
            tensor = tensors.pop(name)
            if part is None or part.expert is None:
                stored[part.tensor if part else name] = tensor
                continue
            if part.tensor not in stored:
                stored[part.tensor] = torch.empty(self._fused.shape(part.tensor), dtype=tensor.dtype)
            stored[part.tensor][part.expert, part.start : part.stop] = tensor
        return stored


def open_dense(folder: Path, ties: Mapping[str, str] | None = None) -> CheckpointReader:
    """Open a dense checkpoint, with one matrix per expert and projection however it stores them.

    Raises:
        ModelError: See `CheckpointReader` and `UnfusedReader`.
    """
    reader = CheckpointReader(folder, ties=ties)
    return UnfusedReader(folder, ties) if any(map(_is_fused, reader.names)) else reader


def _is_fused(name: str) -> bool:
    return name.endswith((f".experts.{_GATE_UP}", f".experts.{_DOWN}"))


def _parts_of(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Part]:
    """Map the matrices of layers with fused experts to stored tensors."""
    fused = [name for name in shapes if _is_fused(name)]
    model_type = str(read_config(folder)["model_type"])
    if model_type not in LAYOUTS:
        raise ModelError(
            f"{folder}: {fused[0]}: fused experts are known for {', '.join(LAYOUTS)}, not for {model_type}"
        )
    layout = LAYOUTS[model_type]
    parts: dict[str, _Part] = {}
    layers = {layer: f"{layer.rpartition('.')[0]}.{layout.layer}" for layer in (_layer(name) for name in fused)}
    for name, shape in shapes.items():
        layer = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        if layer is None:
            continue
        if name not in fused:
            parts[layers[layer] + name.removeprefix(layer)] = _Part(name)
            continue
        projections = (layout.gate, layout.up) if name.endswith(_GATE_UP) else (layout.down,)
        if len(shape) != 3 or shape[1] % len(projections):
            raise ModelError(f"{folder}: {name}: expected a stack of matrices, got shape {list(shape)}")
        rows = shape[1] // len(projections)
        for expert in range(shape[0]):
            for index, projection in enumerate(projections):
                matrix = f"{layers[layer]}.experts.{expert}.{projection}.weight"
                parts[matrix] = _Part(name, expert, index * rows, (index + 1) * rows)
    return parts


def _layer(name: str) -> str:
    return name.rpartition(".experts.")[0]
