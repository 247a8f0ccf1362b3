"""One safetensors file, whose header is checked against its size before anything is read."""

import os
import stat
import weakref
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.core.json_file import JSON_ERRORS, parse_json
from eggs_ptp.errors import ModelError

DTYPES: Mapping[str, torch.dtype] = MappingProxyType({
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
})  # fmt: skip
FLOAT8: Mapping[str, torch.dtype] = MappingProxyType({"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2})
# Bits per value of the types that the format has and dense models do not.
_QUANTISED_TYPES = {"C64": 64, "U64": 64, "U32": 32, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}
_QUANTISED_TYPES |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6}
_BITS = _QUANTISED_TYPES | {code: 8 * dtype.itemsize for code, dtype in DTYPES.items()}
_HEADER = 100_000_000  # bytes of a header, the format's own limit
_AXES = 64  # of a tensor, torch's own limit
_LARGEST = 1 << 63  # what torch counts in
_PIECE = 1 << 26  # bytes read at a time


class Entry(NamedTuple):
    """The header's entry of one tensor: type code, shape, first byte and end in the file."""

    code: str
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """Reads the tensors of a safetensors file by name.

    The file stays open, so that a file that replaces it is not mixed in. It is read and not memory-mapped: a failing
    disk, or a file truncated by another process, would end a process that has mapped it without a message.

    Args:
        path: The file.
        float8: Read 8-bit floats too, which dense models do not have.

    Raises:
        ModelError: There is no file, or it is not of the format: its header is longer than the file, no JSON, has an
            impossible type or shape, or tensors overlap, leave gaps or do not end with the file.
    """

    def __init__(self, path: Path, *, float8: bool = False) -> None:
        self.path = path
        self._dtypes = {**DTYPES, **FLOAT8} if float8 else DTYPES
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not be waited for
            weakref.finalize(self, os.close, handle)
            self._handle = handle
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise self._invalid("it is no regular file")
            self.entries: Mapping[str, Entry] = self._read_header(status.st_size)
        except FileNotFoundError:
            raise ModelError(f"{path}: this shard is named in the index but missing") from None
        except OSError as error:
            raise self._invalid(str(error.strerror)) from error

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """Read one tensor, or its rows `first` to `last`, exclusive.

        Raises:
            ModelError: A type that a dense model does not have, or the file cannot be read.
        """
        entry = self.entries[name]
        shape = entry.shape
        start = entry.start
        size = entry.end - entry.start
        if last is not None:
            row_bytes = size // shape[0]
            shape = (last - first, *shape[1:])
            start += first * row_bytes
            size = (last - first) * row_bytes
        try:
            tensor = torch.empty(shape, dtype=self.dtype(name))
            buffer = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
            done = 0
            while done < size:
                count = os.preadv(self._handle, [buffer[done : done + _PIECE]], start + done)
                if not count:
                    raise ModelError(f"{self.path}: {name} cannot be read (the file has been truncated meanwhile)")
                done += count
        except OSError as error:
            raise ModelError(f"{self.path}: {name} cannot be read ({error.strerror})") from error
        except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError for too little memory
            raise ModelError(f"{self.path}: {name}: no memory for its {size} bytes") from error
        if tensor.dtype == torch.bool and (tensor.view(torch.uint8) > 1).any():
            raise ModelError(f"{self.path}: {name} holds booleans that are neither 0 nor 1")
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        """Return the type, from the header.

        Raises:
            ModelError: A type that a dense model does not have, such as 8-bit floats.
        """
        code = self.entries[name].code
        if code not in self._dtypes:
            raise ModelError(f"{self.path}: {name} has type {code}, as quantised models have; prune the original")
        return self._dtypes[code]

    def _read_header(self, size: int) -> dict[str, Entry]:
        length = int.from_bytes(os.pread(self._handle, 8, 0), "little")
        if size < 8 or length > min(size - 8, _HEADER):
            raise self._invalid(f"its header would take {length} bytes of {max(0, size - 8)}, at most {_HEADER}")
        try:
            header = parse_json(os.pread(self._handle, length, 8).decode(), _unique)
        except JSON_ERRORS as error:
            raise self._invalid(f"its header is not valid JSON: {error}") from error
        if not isinstance(header, dict) or not isinstance(header.pop("__metadata__", {}), dict):
            raise self._invalid("its header is no object of tensors")
        start = 8 + length
        entries = {name: self._entry(name, value, start) for name, value in header.items()}
        end = start
        for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
            if entry.start != end:
                raise self._invalid(f"{name} starts at byte {entry.start}, expected {end}")
            end = entry.end
        if end != size:
            raise self._invalid(f"its tensors end at byte {end}, the file at {size}")
        return entries

    def _entry(self, name: str, value: Any, start: int) -> Entry:
        try:
            code = value["dtype"]
            shape = value["shape"]
            begin, end = value["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise self._invalid(f"{name} lacks a dtype, a shape or data_offsets") from None
        if not isinstance(code, str) or code not in _BITS:
            raise self._invalid(f"{name} has type {str(code)[:20]!r}, which the format does not have")
        if not isinstance(shape, list) or len(shape) > _AXES or not all(map(_is_count, (*shape, begin, end))):
            raise self._invalid(f"{name} has an impossible shape or data_offsets")
        if prod(max(1, side) for side in shape) >= _LARGEST or 8 * (end - begin) != prod(shape) * _BITS[code]:
            raise self._invalid(f"{name} has {end - begin} bytes, which {code} of shape {_short(shape)} does not")
        return Entry(code, tuple(shape), start + begin, start + end)

    def _invalid(self, reason: str) -> ModelError:
        return ModelError(f"{self.path}: not a readable safetensors file ({reason})")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, unless a name occurs twice: programs would differ in which one they take."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _short(shape: list[int]) -> str:
    text = str(shape)
    return text if len(text) <= 60 else f"{text[:57]}..."
