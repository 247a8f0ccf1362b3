"""Reads the tensors of a safetensors checkpoint, one at a time."""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from eggs_ptp.core.finite import is_finite
from eggs_ptp.core.json_file import read_json
from eggs_ptp.engine.tensors.safetensors_file import Entry, TensorFile
from eggs_ptp.errors import CheckpointError, ModelError, NumericsError
from eggs_ptp.models.folder import INDEX, SINGLE_FILE, weights_index
from eggs_ptp.models.path_validation import check_inside, is_plain

_PIECE_BYTES = 1 << 24


class CheckpointReader:
    """Reads tensors of a checkpoint folder by name; the constructor reads headers only.

    Args:
        folder: The checkpoint.
        files: Its safetensors files; None for those of the index, or model.safetensors.
        ties: Maps a name to another one that its tensor may be stored under, as for tied embeddings.
        float8: Read 8-bit floats too, which dense models do not have.

    Attributes:
        where: The file of each tensor.

    Raises:
        ModelError: The index is damaged, or a shard is missing, outside the folder, or not safetensors.
    """

    def __init__(
        self,
        folder: Path,
        files: Collection[Path] | None = None,
        ties: Mapping[str, str] | None = None,
        *,
        float8: bool = False,
    ) -> None:
        self.folder = folder
        self._ties = ties or {}
        self._files: dict[Path, TensorFile] = {}
        indexed = _index(folder) if files is None else {}
        for path in sorted(set(indexed.values()) or files or {folder / SINGLE_FILE}):
            if files is None:
                check_inside(path, folder)
            self._files[path] = TensorFile(path, float8=float8)
        stored = {name: path for path, file in self._files.items() for name in file.entries}
        for name, path in indexed.items():
            if stored.get(name) != path:
                raise ModelError(f"{path}: the index places {name} here, but the file does not have it")
        self.where = indexed or stored

    @classmethod
    def of_file(cls, path: Path) -> "CheckpointReader":
        """Open a single safetensors file."""
        return cls(path.parent, [path])

    def __contains__(self, name: str) -> bool:
        return name in self.where

    @property
    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self.where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape, from the header."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the type, from the header.

        Raises:
            ModelError: A type that a dense model does not have, such as 8-bit floats.
        """
        name = self._stored(name)
        return self._files[self.where[name]].dtype(name)

    def bytes(self, name: str) -> int:
        """Return the size in bytes, from the header."""
        return self.dtype(name).itemsize * prod(self.shape(name))

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            ModelError: There is no such tensor, it has a type that a dense model does not have, or the file cannot be
                read.
        """
        name = self._stored(name)
        return self._files[self.where[name]].read(name)

    def read_sound(self, name: str) -> Tensor:
        """Read a tensor that will be copied unchanged, and check it.

        Raises:
            ModelError: See `read`.
            NumericsError: It holds NaN or infinity.
        """
        tensor = self.read(name)
        self._check_finite(name, tensor)
        return tensor

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Read rows `first` to `last`, exclusive.

        Raises:
            ModelError: See `read`.
        """
        name = self._stored(name)
        return self._files[self.where[name]].read(name, first, last)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Read a tensor that will be copied unchanged, a few rows at a time, as embeddings are large.

        Raises:
            ModelError: See `read`.
            NumericsError: See `read_sound`.
        """
        shape = self.shape(name)
        if len(shape) < 2 or not prod(shape):
            yield self.read_sound(name)
            return
        rows = max(1, _PIECE_BYTES // (self.bytes(name) // shape[0]))
        for first in range(0, shape[0], rows):
            piece = self.rows(name, first, min(first + rows, shape[0]))
            self._check_finite(name, piece)
            yield piece

    @property
    def as_stored(self) -> "CheckpointReader":
        """The same checkpoint with the names and shapes that it is stored with."""
        return self

    def to_stored(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of whole blocks with the names and shapes that they are stored with; `tensors` is emptied."""
        return tensors

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a tensor's bytes."""
        return sha256_of(self.read(name))

    def check_floats(self) -> None:
        """Refuse weights and biases with an integer type, as a damaged header may have.

        Raises:
            ModelError: Names the first.
        """
        for name in self.where:
            if not name.endswith((".weight", ".bias")) or self.is_causal_mask(name):
                continue
            if not (dtype := self.dtype(name)).is_floating_point:
                raise ModelError(f"{self.where[name]}: {name} has type {dtype}, expected floating-point numbers")

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        if not is_finite(tensor) and not self.is_causal_mask(name):
            raise NumericsError(f"{name}: the weight holds NaN or infinity; check the checkpoint {self.folder}")

    def is_causal_mask(self, name: str) -> bool:
        """Whether a tensor is a causal mask (1, 1, n, n) or the value of masked scores, which old checkpoints store."""
        return name.endswith(".masked_bias") or (name.endswith(".bias") and len(self.shape(name)) == 4)

    def _entry(self, name: str) -> Entry:
        name = self._stored(name)
        return self._files[self.where[name]].entries[name]

    def _stored(self, name: str) -> str:
        for candidate in (name, self._ties.get(name, name)):
            if candidate in self.where:
                return candidate
        if any(stored.endswith((".qweight", ".qzeros")) for stored in self.where):
            raise ModelError(f"{self.folder}: already quantised (qweight tensors); prune the original model instead")
        raise ModelError(f"{self.folder}: no tensor is named {name}; the checkpoint does not fit its config.json")


def _index(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor by the index; {} for a folder with a single model.safetensors."""
    path = weights_index(folder)
    if path is None:
        if not (folder / SINGLE_FILE).exists():
            raise ModelError(f"{folder}: expected {SINGLE_FILE} or {INDEX}")
        return {}
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    is_map = isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values())
    if not weight_map or not is_map:
        raise ModelError(f"{path}: expected an index with a weight_map object of file names")
    for name, file in weight_map.items():
        if not is_plain(file):
            raise ModelError(f"{path}: {name} points to {file!r}; shards must lie in the folder itself")
        if not file.endswith(".safetensors"):
            raise ModelError(
                f"{path}: {name} points to {file!r}; only safetensors are read, as other weights can run code when "
                "loaded; convert them in a trusted place (load with transformers, then save_pretrained)"
            )
    return {name: folder / file for name, file in weight_map.items()}


def sha256_of(tensor: Tensor | Iterable[Tensor]) -> str:
    """Return the SHA-256 of the bytes of a tensor, which may be given a few rows at a time."""
    digest = hashlib.sha256()
    for part in [tensor] if isinstance(tensor, Tensor) else tensor:
        digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the permissions of the umask (the library writes 0600).

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, {"format": "pt"})
        umask = os.umask(0)
        os.umask(umask)
        path.chmod(0o666 & ~umask)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error
