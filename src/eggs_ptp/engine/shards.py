"""Shards: the tensors of a safetensors folder, read one at a time."""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from eggs_ptp.core.finite import finite
from eggs_ptp.engine.tensor_file import Entry, TensorFile
from eggs_ptp.errors import CheckpointError, ModelError, NumericsError
from eggs_ptp.models.fence import check_inside, is_plain
from eggs_ptp.models.json_file import read_json

_AT_ONCE = 1 << 24  # bytes of a piece


class Shards:
    """Lazy access to every tensor of a checkpoint folder by name; nothing but headers is read at first.

    `ties` maps a name to the one that its tensor may be stored under instead, as tied embeddings are.

    Raises:
        ModelError: a broken index, a shard that is missing, outside the folder, or not safetensors.
    """

    def __init__(
        self, folder: Path, files: Collection[Path] | None = None, ties: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self._ties = ties or {}
        self._files: dict[Path, TensorFile] = {}
        indexed = _index(folder) if files is None else {}
        for path in sorted(set(indexed.values()) or files or {folder / "model.safetensors"}):
            if files is None:
                check_inside(path, folder)
            self._files[path] = TensorFile(path)
        stored = {name: path for path, file in self._files.items() for name in file.entries}
        for name, path in indexed.items():
            if stored.get(name) != path:
                raise ModelError(f"{path}: the index places {name} here, but the file does not have it")
        self.where = indexed or stored

    @classmethod
    def of_file(cls, path: Path) -> "Shards":
        """The tensors of a single safetensors file."""
        return cls(path.parent, [path])

    def __contains__(self, name: str) -> bool:
        return name in self.where

    @property
    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self.where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the header."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Type from the header.

        Raises:
            ModelError: a type that a dense model does not have, such as 8-bit floats.
        """
        name = self._stored(name)
        return self._files[self.where[name]].dtype(name)

    def bytes(self, name: str) -> int:
        """Size of a tensor in bytes, from the header."""
        return self.dtype(name).itemsize * prod(self.shape(name))

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            ModelError: no such tensor, a type that a dense model does not have, or the file cannot be read.
        """
        name = self._stored(name)
        return self._files[self.where[name]].read(name)

    def read_sound(self, name: str) -> Tensor:
        """Read a tensor that is taken over as it is.

        Raises:
            ModelError: as `read`.
            NumericsError: it holds NaN or infinity.
        """
        tensor = self.read(name)
        self._check_finite(name, tensor)
        return tensor

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Read the rows of a tensor from `first` on and before `last`.

        Raises:
            ModelError: as `read`.
        """
        name = self._stored(name)
        return self._files[self.where[name]].read(name, first, last)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Read a tensor that is taken over as it is some rows at a time, as those outside of blocks are large.

        Raises:
            ModelError: as `read`.
            NumericsError: as `read_sound`.
        """
        shape = self.shape(name)
        if len(shape) < 2 or not prod(shape):
            yield self.read_sound(name)
            return
        rows = max(1, _AT_ONCE // (self.bytes(name) // shape[0]))
        for first in range(0, shape[0], rows):
            piece = self.rows(name, first, min(first + rows, shape[0]))
            self._check_finite(name, piece)
            yield piece

    @property
    def as_stored(self) -> "Shards":
        """The folder by the names and shapes that it has itself."""
        return self

    def to_stored(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of whole blocks, which are used up, by the names and shapes that the folder has for them."""
        return tensors

    def sha256(self, name: str) -> str:
        """SHA-256 of a tensor's bytes."""
        return sha256_of(self.read(name))

    def check_floats(self) -> None:
        """Refuse weights and biases of whole numbers, as a damaged header may have them.

        Raises:
            ModelError: names the first.
        """
        for name in self.where:
            if not name.endswith((".weight", ".bias")) or self.is_causal_mask(name):
                continue
            if not (dtype := self.dtype(name)).is_floating_point:
                raise ModelError(f"{self.where[name]}: {name} has type {dtype}, expected floating-point numbers")

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        if not finite(tensor) and not self.is_causal_mask(name):
            raise NumericsError(f"{name}: the weight holds NaN or infinity; check the checkpoint {self.folder}")

    def is_causal_mask(self, name: str) -> bool:
        """Whether it is a causal mask, (1, 1, n, n), or what stands for a masked score: old checkpoints have both."""
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
    """Where the index places each tensor; empty for a folder with a single model.safetensors."""
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        if not (folder / "model.safetensors").exists():
            raise ModelError(f"{folder}: expected model.safetensors or model.safetensors.index.json")
        return {}
    found = read_json(path)
    table = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise ModelError(f"{path}: expected an index with a weight_map object, of file names")
    for name, file in table.items():
        if not is_plain(file):
            raise ModelError(f"{path}: {name} points to {file!r}; shards must lie in the folder itself")
        if not file.endswith(".safetensors"):
            raise ModelError(
                f"{path}: {name} points to {file!r}; only safetensors are read, as other weights can run code when "
                "loaded; convert them in a trusted place (load with transformers, then save_pretrained)"
            )
    return {name: folder / file for name, file in table.items()}


def sha256_of(tensor: Tensor | Iterable[Tensor]) -> str:
    """SHA-256 of the bytes of a tensor, or of one given some rows at a time."""
    digest = hashlib.sha256()
    for part in [tensor] if isinstance(tensor, Tensor) else tensor:
        digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the permissions that the umask asks for (the library writes 0600).

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, {"format": "pt"})
        umask = os.umask(0)
        os.umask(umask)
        path.chmod(0o666 & ~umask)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error
