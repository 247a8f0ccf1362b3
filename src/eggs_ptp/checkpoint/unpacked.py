"""Unpacked: a packed folder read as the dense one that it stands for; docs/format.md has the form."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from eggs_ptp.core.pack import Packed, check, unpack
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError, MethodError, PatternError
from eggs_ptp.models.folder import read_config
from eggs_ptp.sparse.contents import METHOD, Contents


class Unpacked(Shards):
    """A packed folder seen as the dense one: `NAME.weight` is unpacked when it is read.

    Raises:
        ModelError: as `Shards`.
        CheckpointError: not a packed folder that this version reads, or tensors that do not fit its config.json.
    """

    def __init__(self, folder: Path, ties: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, ties=ties)
        block = read_config(folder, packed=True).get("quantization_config")
        self.contents = Contents.read(block, str(folder / "config.json"))
        self._stored_as = Shards(folder)
        self._matrices = {f"{name}.weight": name for name in self.contents.matrices}
        where = dict(self.where)
        for weight, name in self._matrices.items():
            for tensor in self.contents.tensors(name):
                if tensor not in self.where:
                    raise CheckpointError(f"{folder}: {tensor} is named in config.json, but in none of the files")
                where.pop(tensor)
            where[weight] = self.where[f"{name}.values"]
        self.where = where

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the dense tensor."""
        if name not in self._matrices:
            return super().shape(name)
        matrix = self._matrices[name]
        pattern = self.contents.matrices[matrix]
        rows, kept = self._stored_as.shape(f"{matrix}.values")
        return rows, kept // pattern.keep * pattern.group

    def dtype(self, name: str) -> torch.dtype:
        """Type of the dense tensor."""
        if name not in self._matrices:
            return super().dtype(name)
        return self._stored_as.dtype(f"{self._matrices[name]}.values")

    def read(self, name: str) -> Tensor:
        """Read one tensor as the dense folder had it.

        Raises:
            ModelError: as `Shards.read`.
            CheckpointError: the packed tensors are no packed matrix.
        """
        return unpack(self.packed(self._matrices[name])) if name in self._matrices else super().read(name)

    def read_rows(self, name: str) -> Iterator[Tensor]:
        """Read one tensor, some of its rows after the others.

        Raises:
            ModelError: as `Shards.read`.
            CheckpointError: as `read`.
        """
        if name not in self._matrices:
            yield super().read(name)
            return
        for _, tile in self.packed(self._matrices[name]).tiles():
            yield unpack(tile)

    def packed(self, matrix: str) -> Packed:
        """Read one packed matrix, and check it.

        Raises:
            ModelError: as `Shards.read`.
            CheckpointError: its tensors do not fit together.
        """
        path = self.where[f"{matrix}.weight"]
        ordered = matrix in self.contents.ordered
        values, bits = (self._stored_as.read(f"{matrix}.{part}") for part in ("values", "bits"))
        order = self._stored_as.read(f"{matrix}.order") if ordered else None
        if values.ndim != 2:
            raise CheckpointError(f"{path}: {matrix}.values has shape {tuple(values.shape)}, expected a matrix")
        pattern = self.contents.matrices[matrix]
        packed = Packed(values, bits, pattern, values.shape[1] // pattern.keep * pattern.group, order)
        try:
            check(packed, matrix)
        except (PatternError, MethodError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        return packed


def is_packed(folder: Path) -> bool:
    """Whether a model folder is a packed one."""
    block = read_config(folder, packed=True).get("quantization_config")
    return isinstance(block, dict) and block.get("quant_method") == METHOD


def open_shards(folder: Path, ties: Mapping[str, str] | None = None) -> Shards:
    """The dense tensors of a folder, packed or not.

    Raises:
        ModelError: as `Shards`.
        CheckpointError: as `Unpacked`.
    """
    return Unpacked(folder, ties) if is_packed(folder) else Shards(folder, ties=ties)
