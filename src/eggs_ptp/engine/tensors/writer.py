"""Writes the safetensors files of a folder, tensor by tensor in any order."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from eggs_ptp.engine.tensors.safetensors_file import DTYPES
from eggs_ptp.errors import CheckpointError

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LARGEST = 4 * 1024**3  # bytes of a file; a folder that fits into one gets one


class TensorSpec(NamedTuple):
    """Type and shape of a tensor to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """Writes model.safetensors, or shards of up to 4 GB with an index, holding one tensor in memory at a time.

    Use it as `with SafetensorsWriter(folder, specs) as writer: writer.put(name, tensor)`, once for every name.

    Args:
        folder: Where the files go.
        specs: Type and shape of every tensor, in the order of the layers; the headers are written first.
        largest: Bytes of a file.

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, specs: Mapping[str, TensorSpec], *, largest: int = _LARGEST) -> None:
        self.folder = folder
        self.specs = specs
        self._files: dict[Path, int] = {}
        self._offsets: dict[str, tuple[Path, int]] = {}
        self._missing = set(specs)
        groups = list(_groups(specs, largest))
        for number, names in enumerate(groups, 1):
            file = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            self._lay_out(folder / file, names)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor."""
        self.put_rows(name, [tensor])

    def put_rows(self, name: str, parts: Iterable[Tensor]) -> None:
        """Write one tensor, given a few rows at a time."""
        spec = self.specs[name]
        path, offset = self._offsets[name]
        end = offset + spec.nbytes
        for part in parts:
            assert (part.dtype, part.shape[1:]) == (spec.dtype, spec.shape[1:]), (name, part.shape, spec)  # noqa: S101
            data = memoryview(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            offset = self._write(path, data, offset)
        assert offset == end, (name, spec)  # noqa: S101
        self._missing.discard(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            os.close(file)
        if kind is None:
            assert not self._missing, sorted(self._missing)  # noqa: S101 - every tensor was put
            self._write_index()

    def _lay_out(self, path: Path, names: list[str]) -> None:
        """Write a file's header. The widest types come first, so that every tensor is aligned."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        starts: dict[str, int] = {}
        end = 0
        for name in sorted(names, key=lambda name: -self.specs[name].dtype.itemsize):
            spec = self.specs[name]
            starts[name] = end
            end += spec.nbytes
            offsets = [starts[name], end]
            header[name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        try:
            self._files[path] = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            self._write(path, memoryview(len(text).to_bytes(8, "little") + text), 0)
            os.truncate(self._files[path], 8 + len(text) + end)
        except OSError as error:
            raise _failed(path, error) from error
        self._offsets.update({name: (path, 8 + len(text) + start) for name, start in starts.items()})

    def _write(self, path: Path, data: memoryview, offset: int) -> int:
        """Write bytes at an offset, as many at a time as the system takes; return the offset after them."""
        try:
            while data:
                written = os.pwrite(self._files[path], data, offset)
                data = data[written:]
                offset += written
        except OSError as error:
            raise _failed(path, error) from error
        return offset

    def _write_index(self) -> None:
        """Write the index of a folder of several files."""
        if len(self._files) == 1:
            return
        total = sum(spec.nbytes for spec in self.specs.values())
        table = {name: path.name for name, (path, _) in sorted(self._offsets.items())}
        index = {"metadata": {"total_size": total}, "weight_map": table}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _groups(specs: Mapping[str, TensorSpec], largest: int) -> Iterator[list[str]]:
    """Divide the names over files, in their order."""
    names: list[str] = []
    size = 0
    for name, spec in specs.items():
        if names and size + spec.nbytes > largest:
            yield names
            names = []
            size = 0
        names.append(name)
        size += spec.nbytes
    yield names


def _failed(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be written ({error.strerror})")
