"""Reads a packed folder as the dense folder that it was made from; docs/format.md describes the format."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from eggs_ptp.core.layout import check_packed, packed_layout
from eggs_ptp.core.pack import FLOAT_DTYPES, Packed, unpack
from eggs_ptp.engine.tensors.fused_experts import open_dense
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CheckpointError, MethodError, PatternError
from eggs_ptp.models.folder import read_config
from eggs_ptp.sparse.packed_config import PackedConfig, is_packed_block


class UnpackedReader(CheckpointReader):
    """Presents a packed folder as the dense one: `NAME.weight` is unpacked when it is read.

    Attributes:
        packed_config: Which matrices are packed, and how.

    Args:
        folder: The packed folder.
        ties: Maps a tensor to the one that it may be stored as instead.

    Raises:
        ModelError: As `CheckpointReader`.
        CheckpointError: Not a packed folder that this version reads, or its tensors do not fit its `config.json`.
    """

    def __init__(self, folder: Path, ties: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, ties=ties)
        quantization_config = read_config(folder, packed=True).get("quantization_config")
        self.packed_config = PackedConfig.read(quantization_config, str(folder / "config.json"))
        self._stored_reader = CheckpointReader(folder)
        self._matrices = {f"{name}.weight": name for name in self.packed_config.matrices}
        where = dict(self.where)
        for weight, matrix in self._matrices.items():
            for tensor in self.packed_config.tensors(matrix):
                if tensor not in self.where:
                    raise CheckpointError(f"{folder}: {tensor} is named in config.json, but in none of the files")
                where.pop(tensor)
            where[weight] = self.where[f"{matrix}.values"]
            self._check_header(matrix)
        self.where = where

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the dense tensor."""
        if name not in self._matrices:
            return super().shape(name)
        matrix = self._matrices[name]
        values_shape = self._stored_reader.shape(f"{matrix}.values")
        shape = (values_shape[0], self._columns(matrix, values_shape))
        return shape[::-1] if matrix in self.packed_config.transposed else shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of the dense tensor."""
        if name not in self._matrices:
            return super().dtype(name)
        matrix = self._matrices[name]
        part = "scales" if matrix in self.packed_config.values else "values"
        return self._stored_reader.dtype(f"{matrix}.{part}")

    def read(self, name: str) -> Tensor:
        """Read one tensor as the dense folder has it.

        Raises:
            ModelError: As `CheckpointReader.read`.
            CheckpointError: The packed tensors do not describe a matrix.
        """
        if name not in self._matrices:
            return super().read(name)
        matrix = self._matrices[name]
        weight = unpack(self.read_packed(matrix))
        return weight.T.contiguous() if matrix in self.packed_config.transposed else weight

    def read_rows(self, name: str) -> Iterator[Tensor]:
        """Read one tensor, a few rows at a time.

        Raises:
            ModelError: As `CheckpointReader.read`.
            CheckpointError: As `read`.
        """
        matrix = self._matrices.get(name)
        if matrix is None or matrix in self.packed_config.transposed:  # rows of the latter are columns as packed
            yield self.read(name)
            return
        for _, tile in self.read_packed(matrix).tiles():
            yield unpack(tile)

    def read_packed(self, matrix: str) -> Packed:
        """Read one packed matrix, and check it.

        Args:
            matrix: Name of the linear, without `.weight`.

        Raises:
            ModelError: As `CheckpointReader.read`.
            CheckpointError: Its tensors do not fit together.
        """
        path = self.where[f"{matrix}.weight"]
        parts = {part: self._stored_reader.read(f"{matrix}.{part}") for part in self.packed_config.parts(matrix)}
        columns = self._columns(matrix, tuple(parts["values"].shape))
        packed = Packed(pattern=self.packed_config.matrices[matrix], columns=columns, **parts)
        try:
            check_packed(packed, matrix)
        except (PatternError, MethodError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        return packed

    def _check_header(self, matrix: str) -> None:
        """Refuse, before any tensor is read, types and shapes that no packed matrix has."""
        reader = self._stored_reader
        kind = self.packed_config.values.get(matrix)
        path = self.where[f"{matrix}.values"]
        values_shape = reader.shape(f"{matrix}.values")
        if len(values_shape) != 2 or not all(values_shape):
            raise CheckpointError(f"{path}: expected {matrix}.values to be a matrix, got shape {values_shape}")
        dtype = reader.dtype(f"{matrix}.{'scales' if kind else 'values'}")
        if dtype not in FLOAT_DTYPES:
            raise CheckpointError(f"{path}: {matrix} has weights of type {dtype}, config.json says {kind or 'float'}")
        shape = (values_shape[0], self._columns(matrix, values_shape))
        ordered = matrix in self.packed_config.ordered
        layout = packed_layout(shape, dtype, self.packed_config.matrices[matrix], kind, ordered=ordered)
        for part, expected in layout.items():
            name = f"{matrix}.{part}"
            stored = (reader.dtype(name), reader.shape(name))
            if stored != expected:
                raise CheckpointError(
                    f"{self.where[name]}: {name} is {stored[0]} of shape {stored[1]}, expected {expected[0]} of shape "
                    f"{expected[1]}, by config.json and its values"
                )

    def _columns(self, matrix: str, values_shape: tuple[int, ...]) -> int:
        """Columns of the dense matrix, from the shape of its stored values; int4 stores two in a byte."""
        pattern = self.packed_config.matrices[matrix]
        values_per_item = 2 if self.packed_config.values.get(matrix) == "int4" else 1
        return values_shape[1] * values_per_item // pattern.keep * pattern.group


def is_packed(folder: Path) -> bool:
    """Whether a model folder is a packed one."""
    return is_packed_block(read_config(folder, packed=True).get("quantization_config"))


def open_reader(folder: Path, ties: Mapping[str, str] | None = None) -> CheckpointReader:
    """Open a model folder, packed or dense, as a reader of its dense tensors.

    Args:
        folder: The folder.
        ties: Maps a tensor to the one that it may be stored as instead.

    Raises:
        ModelError: As `CheckpointReader`.
        CheckpointError: As `UnpackedReader`.
    """
    return UnpackedReader(folder, ties) if is_packed(folder) else open_dense(folder, ties)
