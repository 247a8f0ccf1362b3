"""Unpacked: a packed folder read as the dense one that it stands for; docs/format.md has the form."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from eggs_ptp.core.layout import check, layout
from eggs_ptp.core.pack import FLOATS, Packed, unpack
from eggs_ptp.engine.fused import open_dense
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError, MethodError, PatternError
from eggs_ptp.models.folder import read_config
from eggs_ptp.sparse.contents import Contents, is_ours


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
            self._check_header(name)
        self.where = where

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the dense tensor."""
        if name not in self._matrices:
            return super().shape(name)
        matrix = self._matrices[name]
        values = self._stored_as.shape(f"{matrix}.values")
        shape = values[0], self._columns(matrix, values)
        return shape[::-1] if matrix in self.contents.transposed else shape

    def dtype(self, name: str) -> torch.dtype:
        """Type of the dense tensor."""
        if name not in self._matrices:
            return super().dtype(name)
        matrix = self._matrices[name]
        return self._stored_as.dtype(f"{matrix}.{'scales' if matrix in self.contents.values else 'values'}")

    def read(self, name: str) -> Tensor:
        """Read one tensor as the dense folder had it.

        Raises:
            ModelError: as `Shards.read`.
            CheckpointError: the packed tensors are no packed matrix.
        """
        if name not in self._matrices:
            return super().read(name)
        matrix = self._matrices[name]
        weight = unpack(self.packed(matrix))
        return weight.T.contiguous() if matrix in self.contents.transposed else weight

    def read_rows(self, name: str) -> Iterator[Tensor]:
        """Read one tensor, some of its rows after the others.

        Raises:
            ModelError: as `Shards.read`.
            CheckpointError: as `read`.
        """
        if self._matrices.get(name) in {None, *self.contents.transposed}:  # the last are packed by their columns
            yield self.read(name)
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
        parts = {part: self._stored_as.read(f"{matrix}.{part}") for part in self.contents.parts(matrix)}
        columns = self._columns(matrix, tuple(parts["values"].shape))
        packed = Packed(pattern=self.contents.matrices[matrix], columns=columns, **parts)
        try:
            check(packed, matrix)
        except (PatternError, MethodError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        return packed

    def _check_header(self, matrix: str) -> None:
        """Refuse, before anything is read, types and shapes that are those of no packed matrix."""
        header, kind = self._stored_as, self.contents.values.get(matrix)
        path, found = self.where[f"{matrix}.values"], header.shape(f"{matrix}.values")
        if len(found) != 2 or not all(found):
            raise CheckpointError(f"{path}: {matrix}.values has shape {found}, expected a matrix")
        dtype = header.dtype(f"{matrix}.{'scales' if kind else 'values'}")
        if dtype not in FLOATS:
            raise CheckpointError(f"{path}: {matrix} has weights of type {dtype}, config.json says {kind or 'float'}")
        shape = found[0], self._columns(matrix, found)
        ordered = matrix in self.contents.ordered
        expected = layout(shape, dtype, self.contents.matrices[matrix], kind, ordered=ordered)
        for part, (wanted, sides) in expected.items():
            name = f"{matrix}.{part}"
            if (came := (header.dtype(name), header.shape(name))) != (wanted, sides):
                raise CheckpointError(
                    f"{self.where[name]}: {name} is {came[0]} of shape {came[1]}, expected {wanted} of shape {sides}, "
                    "by config.json and its values"
                )

    def _columns(self, matrix: str, values: tuple[int, ...]) -> int:
        pattern, twice = self.contents.matrices[matrix], 2 if self.contents.values.get(matrix) == "int4" else 1
        return values[1] * twice // pattern.keep * pattern.group


def is_packed(folder: Path) -> bool:
    """Whether a model folder is a packed one."""
    return is_ours(read_config(folder, packed=True).get("quantization_config"))


def open_shards(folder: Path, ties: Mapping[str, str] | None = None) -> Shards:
    """The dense tensors of a folder, packed or not.

    Raises:
        ModelError: as `Shards`.
        CheckpointError: as `Unpacked`.
    """
    return Unpacked(folder, ties) if is_packed(folder) else open_dense(folder, ties)
