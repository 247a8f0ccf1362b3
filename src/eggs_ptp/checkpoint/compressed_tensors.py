"""Reads a folder that was quantised into compressed-tensors' formats, as llm-compressor writes them, as a dense one."""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CheckpointError
from eggs_ptp.models.folder import COMPRESSED_TENSORS, read_config

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense", "mixed-precision")
_PARTS = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx")
_WORD = 32  # bits
_TILE = 1 << 20  # weights unpacked at a time


class CompressedTensorsReader(CheckpointReader):
    """Presents a folder in a format of compressed-tensors as a dense one: `NAME.weight` is dequantised when it is read.

    A weight is (q - zero_point) * scale in float32. It is exactly 0 where q is the zero point, so the zeros of a pruned
    model can be counted.

    Attributes:
        format: The format that config.json names, such as "pack-quantized".

    Args:
        folder: The quantised folder.

    Raises:
        ModelError: As `CheckpointReader`.
        CheckpointError: A format that is not read, or tensors that do not fit together.

    Source:
        compressed-tensors 0.20, https://github.com/vllm-project/compressed-tensors
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, float8=True)
        path = folder / "config.json"
        block = read_config(folder, quantised=True)["quantization_config"]
        groups = _groups(block)
        self.format = _check_formats(block, groups, path)
        widths: set[int] = {group["num_bits"] for group in groups if _is_width(group.get("num_bits"))}
        self._widths = sorted(widths)
        self._blocks = [tuple(group["block_structure"]) for group in groups if _is_pair(group.get("block_structure"))]
        self._stored_reader = CheckpointReader(folder, float8=True)
        stored = dict(self.where)
        self._matrices = {}
        for name in stored:
            matrix, _, part = name.rpartition(".")
            if part not in ("weight", "weight_packed", "weight_scale"):
                continue
            if f"{matrix}.weight_packed" in stored or self._is_quantised(f"{matrix}.weight"):
                self._matrices[f"{matrix}.weight"] = matrix
        consumed = {f"{matrix}.{part}" for matrix in self._matrices.values() for part in _PARTS}
        self.where = {name: file for name, file in stored.items() if name not in consumed}
        for weight, matrix in self._matrices.items():
            if f"{matrix}.weight_scale" not in stored:
                raise CheckpointError(
                    f"{path}: {matrix} is quantised, but {matrix}.weight_scale is in none of the files; quantise again"
                )
            self.where[weight] = stored[f"{matrix}.weight_scale"]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the dense tensor."""
        matrix = self._matrices.get(name)
        if matrix is None or not self._has(matrix, "weight_packed"):
            return self._stored_reader.shape(name)
        rows, columns = self._shape(matrix)
        return (rows, columns)

    def dtype(self, name: str) -> torch.dtype:
        """Return the type that the tensor is read as."""
        return torch.float32 if name in self._matrices else self._stored_reader.dtype(name)

    def read(self, name: str) -> Tensor:
        """Read one tensor; a quantised matrix is returned dequantised, (out, in) in float32.

        Raises:
            ModelError: As `CheckpointReader.read`.
            CheckpointError: The tensors of the matrix do not fit together.
        """
        matrix = self._matrices.get(name)
        if matrix is None:
            return self._stored_reader.read(name)
        try:
            return self._dequantise(matrix)
        except (IndexError, RuntimeError, ValueError) as error:  # shapes that no quantiser writes
            raise CheckpointError(
                f"{self.where[name]}: {matrix}: its quantised tensors do not fit ({error})"
            ) from error

    def _dequantise(self, matrix: str) -> Tensor:
        rows, columns = self._shape(matrix)
        packed = self._has(matrix, "weight_packed")
        stored = self._part(matrix, "weight_packed" if packed else "weight")
        bits = self._bits(matrix, columns, stored.shape[1]) if packed else 0
        scale = self._part(matrix, "weight_scale").float()
        zero_point = None
        if self._has(matrix, "weight_zero_point"):
            zero_point = self._part(matrix, "weight_zero_point")
            if zero_point.dtype == torch.int32 and bits:  # packed along the rows
                zero_point = unpack_integers(zero_point.mT, bits, rows).mT
            zero_point = zero_point.float()
        weight = torch.empty(rows, columns)
        index = self._part(matrix, "weight_g_idx").long() if self._has(matrix, "weight_g_idx") else None
        tile = max(1, _TILE // max(1, columns))
        for first in range(0, rows, tile):
            chosen = slice(first, min(first + tile, rows))
            numbers = unpack_integers(stored[chosen], bits, columns) if packed else stored[chosen]
            part = numbers.float()
            if zero_point is not None:
                part = part - self._spread(matrix, zero_point, (rows, columns), index, chosen)
            weight[chosen] = part * self._spread(matrix, scale, (rows, columns), index, chosen)
        return weight

    def _spread(
        self, matrix: str, values: Tensor, shape: tuple[int, int], index: Tensor | None, chosen: slice
    ) -> Tensor:
        """Return the scales or zero points of some rows, one for each weight or in a shape that broadcasts.

        Args:
            matrix: Name of the matrix.
            values: One of the whole matrix, of each row (rows, 1), of groups of columns (rows, groups), or of blocks.
            shape: (rows, columns) of the matrix.
            index: The group of each column, where groups are not consecutive.
            chosen: The rows.
        """
        rows, columns = shape
        if values.numel() == 1:
            return values.reshape(1, 1)
        values = values.reshape(len(values), -1)
        groups = values.shape[1]
        if len(values) == rows and groups == 1:
            return values[chosen]
        if len(values) == rows and index is not None and len(index) == columns and not (index < 0).any():
            return values[chosen][:, index]
        if len(values) == rows and not columns % groups:
            return values[chosen].repeat_interleave(columns // groups, 1)
        for height, width in self._blocks:
            if (ceil(rows / height), ceil(columns / width)) == values.shape:
                of_rows = torch.arange(chosen.start, chosen.stop) // height
                return values[of_rows][:, torch.arange(columns) // width]
        raise CheckpointError(
            f"{self.where[f'{matrix}.weight']}: {matrix}.weight_scale: expected one scale for the matrix, for each of "
            f"{rows} rows, or for groups or blocks of {columns} columns, got {tuple(values.shape)}; quantise again"
        )

    def _bits(self, matrix: str, columns: int, words: int) -> int:
        """Return the bits of a packed integer, that of config.json's widths which fits the packed columns.

        Widths that do not divide a word are packed without gaps; earlier versions left some in every word.
        """
        fitting = [bits for bits in self._widths if words in (ceil(columns * bits / _WORD), _loose(columns, bits))]
        if len(fitting) != 1:
            raise CheckpointError(
                f"{self.where[f'{matrix}.weight']}: {matrix}.weight_packed: expected {columns} integers of "
                f"{' or '.join(map(str, self._widths)) or 'no known number of'} bits as in config.json, got {words} "
                "words in a row; quantise again"
            )
        return fitting[0]

    def _shape(self, matrix: str) -> tuple[int, int]:
        if self._has(matrix, "weight_packed"):
            if not self._has(matrix, "weight_shape"):
                raise CheckpointError(f"{self.folder}: {matrix}.weight_shape is in none of the files; quantise again")
            shape = tuple(self._part(matrix, "weight_shape").flatten().tolist())
            stored = self._stored_reader.shape(f"{matrix}.weight_packed")
        else:
            shape = stored = self._stored_reader.shape(f"{matrix}.weight")
        counts = all(isinstance(side, int) and side > 0 for side in shape)
        if len(shape) != 2 or len(stored) != 2 or shape[0] != stored[0] or not counts:
            raise CheckpointError(
                f"{self.where[f'{matrix}.weight']}: {matrix}: expected a matrix, got shape {shape} stored as {stored}"
            )
        return shape[0], shape[1]

    def _part(self, matrix: str, part: str) -> Tensor:
        return self._stored_reader.read(f"{matrix}.{part}")

    def _has(self, matrix: str, part: str) -> bool:
        return f"{matrix}.{part}" in self._stored_reader

    def _is_quantised(self, name: str) -> bool:
        """Return whether a tensor has integers or 8-bit floats; scales beside other floats are not applied yet."""
        if name not in self._stored_reader:
            return False
        dtype = self._stored_reader.dtype(name)
        return not dtype.is_floating_point or dtype.itemsize == 1


def unpack_integers(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the signed integers of rows of 32-bit words.

    Integer i is at bit i * bits of its row, plus 2^(bits-1). If the row is longer than that, no integer is split
    between two words, and the last bits of each are unused.

    Args:
        words: (rows, words), int32.
        bits: Bits of an integer, 1 to 8.
        count: Integers of a row.

    Returns:
        (rows, count), int32.
    """
    if words.dtype != torch.int32:
        raise ValueError(f"expected words of type int32, got {words.dtype}")
    number = torch.arange(count)
    if words.shape[1] == ceil(count * bits / _WORD):
        start = number * bits
        word, offset = start // _WORD, start % _WORD
    else:
        per_word = _WORD // bits
        word, offset = number // per_word, number % per_word * bits
    unsigned = words.long() & 0xFFFFFFFF
    following = (word + 1).clamp_max(words.shape[1] - 1)
    value = unsigned[:, word] >> offset
    value |= unsigned[:, following] << (_WORD - offset)
    return ((value & ((1 << bits) - 1)) - (1 << (bits - 1))).int()


def _loose(count: int, bits: int) -> int:
    """Return the words of a row in which no integer is split."""
    return ceil(count / (_WORD // bits))


def is_compressed_tensors(config: Mapping[str, Any]) -> bool:
    """Return whether the config of a model says that it is quantised in a format of compressed-tensors."""
    block = config.get("quantization_config")
    return isinstance(block, dict) and block.get("quant_method") == COMPRESSED_TENSORS


def _groups(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how the weights of each group of modules are quantised, with the format of the group if it has one."""
    groups = block.get("config_groups")
    found = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    return [
        {**weights, "format": group.get("format")}
        for group in found
        if isinstance(weights := group.get("weights"), dict)
    ]


def _check_formats(block: Mapping[str, Any], groups: list[dict[str, Any]], path: Path) -> str:
    """Return the format of the folder; refuse those that are not read."""
    sparsity = block.get("sparsity_config")
    formats = [block.get("format"), *(group["format"] for group in groups)]
    if isinstance(sparsity, dict):
        formats.append(sparsity.get("format"))
    for found in formats:
        if found is not None and found not in _FORMATS:
            raise CheckpointError(
                f"{path}: quantization_config.format: expected {', '.join(_FORMATS[:-1])}, got {found!r}; verify the "
                "pruned folder before it is quantised, or quantise it to one of these"
            )
    return str(block.get("format"))


def _is_width(value: object) -> bool:
    return type(value) is int and 1 <= value <= 8


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
