"""TensorFile: one safetensors file, its header checked against its size before anything of it is held."""

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

from eggs_ptp.errors import ModelError
from eggs_ptp.models.json_file import JSON_FAULTS, parse_json

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
# Types that the format has and dense models do not: bits of one value.
_OTHERS = {"C64": 64, "U64": 64, "U32": 32, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}
_OTHERS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6}
_BITS = _OTHERS | {code: 8 * dtype.itemsize for code, dtype in DTYPES.items()}
_HEADER = 100_000_000  # bytes of a header, the format's own limit
_AXES = 64  # of a tensor, torch's own limit
_LARGEST = 1 << 63  # what torch counts in
_PIECE = 1 << 26  # bytes read at a time


class Entry(NamedTuple):
    """What a header says of one tensor: type code, shape, and where its bytes start and end in the file."""

    code: str
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """The tensors of a safetensors file by name; the file stays open, so that what replaces it is not mixed in.

    It is read and not mapped: a disk that fails, or a file cut short by another process, would end a process that has
    mapped it without a word.

    Raises:
        ModelError: no file, or none of the format: a header that is longer than the file, no JSON, with a type or
            shape that cannot be, or with tensors that overlap, leave gaps or do not end where the file does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not be waited for
            weakref.finalize(self, os.close, handle)
            self._handle = handle
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise self._broken("it is no file")
            self.entries: Mapping[str, Entry] = self._read_header(found.st_size)
        except FileNotFoundError:
            raise ModelError(f"{path}: this shard is named in the index but missing") from None
        except OSError as error:
            raise self._broken(str(error.strerror)) from error

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """Read one tensor, or its rows from `first` on and before `last`.

        Raises:
            ModelError: a type that a dense model does not have, or the file cannot be read.
        """
        entry = self.entries[name]
        shape, start, size = entry.shape, entry.start, entry.end - entry.start
        if last is not None:
            row = size // shape[0]
            shape, start, size = (last - first, *shape[1:]), start + first * row, (last - first) * row
        try:
            tensor = torch.empty(shape, dtype=self.dtype(name))
            done, room = 0, memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
            while done < size:
                count = os.preadv(self._handle, [room[done : done + _PIECE]], start + done)
                if not count:
                    raise ModelError(f"{self.path}: {name} cannot be read (the file was cut short meanwhile)")
                done += count
        except OSError as error:
            raise ModelError(f"{self.path}: {name} cannot be read ({error.strerror})") from error
        except (RuntimeError, MemoryError) as error:  # torch's own word for too little memory
            raise ModelError(f"{self.path}: {name}: no memory for its {size} bytes") from error
        if tensor.dtype == torch.bool and (tensor.view(torch.uint8) > 1).any():
            raise ModelError(f"{self.path}: {name} holds booleans that are neither 0 nor 1")
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        """Type from the header.

        Raises:
            ModelError: a type that a dense model does not have, such as 8-bit floats.
        """
        code = self.entries[name].code
        if code not in DTYPES:
            raise ModelError(f"{self.path}: {name} has type {code}, as quantised models have; prune the original")
        return DTYPES[code]

    def _read_header(self, size: int) -> dict[str, Entry]:
        length = int.from_bytes(os.pread(self._handle, 8, 0), "little")
        if size < 8 or length > min(size - 8, _HEADER):
            raise self._broken(f"its header would take {length} bytes of {max(0, size - 8)}, at most {_HEADER}")
        try:
            header = parse_json(os.pread(self._handle, length, 8).decode(), _unique)
        except JSON_FAULTS as error:
            raise self._broken(f"its header is not valid JSON: {error}") from error
        if not isinstance(header, dict) or not isinstance(header.pop("__metadata__", {}), dict):
            raise self._broken("its header is no object of tensors")
        start = 8 + length
        entries = {name: self._entry(name, found, start) for name, found in header.items()}
        end = start
        for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
            if entry.start != end:
                raise self._broken(f"{name} starts at byte {entry.start}, expected {end}")
            end = entry.end
        if end != size:
            raise self._broken(f"its tensors end at byte {end}, the file at {size}")
        return entries

    def _entry(self, name: str, found: Any, start: int) -> Entry:
        try:
            code, shape, (begin, end) = found["dtype"], found["shape"], found["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise self._broken(f"{name} lacks a dtype, a shape or data_offsets") from None
        if not isinstance(code, str) or code not in _BITS:
            raise self._broken(f"{name} has type {str(code)[:20]!r}, which the format does not have")
        if not isinstance(shape, list) or len(shape) > _AXES or not all(map(_is_count, (*shape, begin, end))):
            raise self._broken(f"{name} has a shape or data_offsets that cannot be")
        if prod(max(1, side) for side in shape) >= _LARGEST or 8 * (end - begin) != prod(shape) * _BITS[code]:
            raise self._broken(f"{name} has {end - begin} bytes, which {code} of shape {_short(shape)} does not")
        return Entry(code, tuple(shape), start + begin, start + end)

    def _broken(self, reason: str) -> ModelError:
        return ModelError(f"{self.path}: not a readable safetensors file ({reason})")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, unless a name is in it twice: readers would differ in which one they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _short(shape: list[int]) -> str:
    text = str(shape)
    return text if len(text) <= 60 else f"{text[:57]}..."
