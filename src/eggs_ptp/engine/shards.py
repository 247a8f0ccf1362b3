"""Shards: the tensors of a safetensors folder, read one at a time."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eggs_ptp.errors import CheckpointError, ModelError, NumericsError

_AT_ONCE = 1 << 24  # elements looked at

DTYPES: Mapping[str, torch.dtype] = {
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
}


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
        self._files: dict[Path, Any] = {}
        indexed = _index(folder) if files is None else {}
        for path in sorted(set(indexed.values()) or files or {folder / "model.safetensors"}):
            self._open(path)
        stored = {name: path for path, file in self._files.items() for name in file.keys()}  # noqa: SIM118
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
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Type from the header.

        Raises:
            ModelError: a type that a dense model does not have, such as 8-bit floats.
        """
        code = self._slice(name).get_dtype()
        if code not in DTYPES:
            raise ModelError(
                f"{self.where[name]}: {name} has type {code}, as quantised models have; prune the original"
            )
        return DTYPES[code]

    def bytes(self, name: str) -> int:
        """Size of a tensor in bytes, from the header."""
        return self.dtype(name).itemsize * int(torch.Size(self.shape(name)).numel())

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            ModelError: no such tensor, or the file cannot be read.
        """
        name = self._stored(name)
        path = self.where[name]
        try:
            tensor: Tensor = self._files[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: {name} cannot be read ({error})") from error
        return tensor

    def read_sound(self, name: str) -> Tensor:
        """Read a tensor that is taken over as it is.

        Raises:
            ModelError: as `read`.
            NumericsError: it holds NaN or infinity.
        """
        tensor = self.read(name)
        parts = tensor.reshape(-1).split(_AT_ONCE) if tensor.is_floating_point() else ()
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise NumericsError(f"{name}: the weight holds NaN or infinity; check the checkpoint {self.folder}")
        return tensor

    def sha256(self, name: str) -> str:
        """SHA-256 of a tensor's bytes."""
        return sha256_of(self.read(name))

    def _slice(self, name: str) -> Any:
        name = self._stored(name)
        return self._files[self.where[name]].get_slice(name)

    def _stored(self, name: str) -> str:
        for candidate in (name, self._ties.get(name, name)):
            if candidate in self.where:
                return candidate
        if any(stored.endswith((".qweight", ".qzeros")) for stored in self.where):
            raise ModelError(f"{self.folder}: already quantised (qweight tensors); prune the original model instead")
        raise ModelError(f"{self.folder}: no tensor is named {name}; the checkpoint does not fit its config.json")

    def _open(self, path: Path) -> None:
        try:
            self._files[path] = safe_open(str(path), framework="pt")
        except FileNotFoundError:
            raise ModelError(f"{path}: this shard is named in the index but missing") from None
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a readable safetensors file ({error})") from error


def _index(folder: Path) -> dict[str, Path]:
    """Where the index places each tensor; empty for a folder with a single model.safetensors."""
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        if not (folder / "model.safetensors").exists():
            raise ModelError(f"{folder}: expected model.safetensors or model.safetensors.index.json")
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        pairs = [(str(name), str(file)) for name, file in table.items()]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: expected an index with a weight_map object ({error!r})") from error
    for name, file in pairs:
        if Path(file).name != file:
            raise ModelError(f"{path}: {name} points to {file!r}; shards must lie in the folder itself")
    return {name: folder / file for name, file in pairs}


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
