"""Stream: safetensors files of a folder, written tensor by tensor in any order."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from eggs_ptp.engine.tensor_file import DTYPES
from eggs_ptp.errors import CheckpointError

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LARGEST = 4 * 1024**3  # bytes of a file; a folder that fits into one gets one


class Spec(NamedTuple):
    """What a tensor will be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


class Stream:
    """A context manager: `with Stream(folder, specs) as stream: stream.put(name, tensor)` for every name, once.

    `specs` says which tensors there will be, in the order of the layers, so that the headers are written first and
    nothing but the tensor in hand is held. Files are model.safetensors, or shards of up to 4 GB with an index.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, specs: Mapping[str, Spec], *, largest: int = _LARGEST) -> None:
        self.folder, self.specs = folder, specs
        self._files: dict[Path, int] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._missing = set(specs)
        groups = list(_groups(specs, largest))
        for number, names in enumerate(groups, 1):
            file = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            self._lay_out(folder / file, names)

    def __enter__(self) -> "Stream":
        return self

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor into its place."""
        self.put_rows(name, [tensor])

    def put_rows(self, name: str, parts: Iterable[Tensor]) -> None:
        """Write one tensor into its place, some of its rows after the others."""
        spec, (path, place) = self.specs[name], self._places[name]
        end = place + spec.nbytes
        for part in parts:
            assert (part.dtype, part.shape[1:]) == (spec.dtype, spec.shape[1:]), (name, part.shape, spec)  # noqa: S101
            data = memoryview(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            place = self._write(path, data, place)
        assert place == end, (name, spec)  # noqa: S101
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
        places, end = {}, 0
        for name in sorted(names, key=lambda name: -self.specs[name].dtype.itemsize):
            spec = self.specs[name]
            places[name], end = end, end + spec.nbytes
            offsets = [places[name], end]
            header[name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        try:
            self._files[path] = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            self._write(path, memoryview(len(text).to_bytes(8, "little") + text), 0)
            os.truncate(self._files[path], 8 + len(text) + end)
        except OSError as error:
            raise _failed(path, error) from error
        self._places.update({name: (path, 8 + len(text) + place) for name, place in places.items()})

    def _write(self, path: Path, left: memoryview, place: int) -> int:
        """Write bytes from a place in a file on, as many at a time as the system takes; the place behind them."""
        try:
            while left:
                written = os.pwrite(self._files[path], left, place)
                left, place = left[written:], place + written
        except OSError as error:
            raise _failed(path, error) from error
        return place

    def _write_index(self) -> None:
        """Write the index of a folder of several files."""
        if len(self._files) == 1:
            return
        total = sum(spec.nbytes for spec in self.specs.values())
        table = {name: path.name for name, (path, _) in sorted(self._places.items())}
        index = {"metadata": {"total_size": total}, "weight_map": table}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _groups(specs: Mapping[str, Spec], largest: int) -> Iterator[list[str]]:
    """Names that go into one file, in their order."""
    names: list[str] = []
    size = 0
    for name, spec in specs.items():
        if names and size + spec.nbytes > largest:
            yield names
            names, size = [], 0
        names.append(name)
        size += spec.nbytes
    yield names


def _failed(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be written ({error.strerror})")
