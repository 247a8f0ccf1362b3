"""Mask files: keep masks of many matrices, one bit per weight, read and written."""

import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from eggs_ptp.core.atomic_write import atomic_path
from eggs_ptp.engine.tensors.reader import save_tensors
from eggs_ptp.engine.tensors.safetensors_file import TensorFile
from eggs_ptp.errors import CheckpointError, ModelError

# What reading a .npz raises: no zip, no array or a pickled one, one that is cut short, or packed in an unknown way.
_READ_ERRORS = (OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError)


class MaskFile:
    """Reads keep masks by matrix name from `.safetensors` or `.npz` (never pickled), one at a time.

    An entry has the name of its matrix, or that with `.weight`, `.mask` or `.weight.mask` appended (as MaskLLM does).
    It has the matrix's shape and holds 0 and 1 (or booleans), or it is packed: uint8 with 8 weights per byte along each
    row, or over the flattened matrix, the first weight in the highest bit, as `numpy.packbits` does.

    Raises:
        CheckpointError: The file is missing, not readable, or of another kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"mask file {path}: no such file")
        try:
            if path.suffix == ".npz":
                with zipfile.ZipFile(path) as stored:
                    self._names = {name.removesuffix(".npy") for name in stored.namelist()}
            elif path.suffix == ".safetensors":
                self._names = set(TensorFile(path).entries)
            else:
                raise CheckpointError(f"mask file {path}: expected .safetensors or .npz")
        except (*_READ_ERRORS, ModelError) as error:
            raise CheckpointError(f"mask file {path}: cannot be read ({error})") from error

    def read(self, name: str, rows: int, columns: int) -> Tensor:
        """Return the keep mask of a matrix, bool (rows, columns).

        Raises:
            CheckpointError: There is no entry for it, it is no mask of that shape, or it cannot be read.
        """
        for key in (name, f"{name}.weight", f"{name}.mask", f"{name}.weight.mask"):
            if key in self._names:
                break
        else:
            raise CheckpointError(f"mask file {self.path}: no entry for {name}; leave the matrix out with --exclude")
        try:
            read = self._array if self.path.suffix == ".npz" else self._tensor
            stored = read(key, rows, columns)
        except (*_READ_ERRORS, ModelError) as error:
            raise CheckpointError(f"mask file {self.path}: {name} cannot be read ({error})") from error
        if stored.shape == (rows, columns) and bool(((stored == 0) | (stored == 1)).all()):
            return stored.bool()
        if stored.dtype == torch.uint8:
            packed = stored.numpy()
            if packed.shape == (rows, -(-columns // 8)):
                return torch.from_numpy(np.unpackbits(packed, axis=1, count=columns).astype(bool))
            if packed.size == -(-rows * columns // 8):
                flat = np.unpackbits(packed.reshape(-1), count=rows * columns)
                return torch.from_numpy(flat.reshape(rows, columns).astype(bool))
        raise self._wrong_shape(name, stored.dtype, tuple(stored.shape), rows, columns)

    def _tensor(self, key: str, rows: int, columns: int) -> Tensor:
        file = TensorFile(self.path)
        if prod(file.entries[key].shape) > rows * columns:  # too large for a mask: not read
            raise self._wrong_shape(key, file.entries[key].code, file.entries[key].shape, rows, columns)
        return file.read(key)

    def _array(self, key: str, rows: int, columns: int) -> Tensor:
        with zipfile.ZipFile(self.path) as archive:
            member = f"{key}.npy" if f"{key}.npy" in archive.namelist() else key
            with archive.open(member) as file:
                version = npy.read_magic(file)
                header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = header(file)
            if prod(shape) > rows * columns or dtype.hasobject:
                raise self._wrong_shape(key, dtype, shape, rows, columns)
            with archive.open(member) as file:
                return torch.from_numpy(npy.read_array(file, allow_pickle=False))

    def _wrong_shape(
        self, name: str, dtype: object, shape: tuple[int, ...], rows: int, columns: int
    ) -> CheckpointError:
        return CheckpointError(
            f"mask file {self.path}: {name} has {str(dtype).removeprefix('torch.')} of shape {shape}, expected 0 and 1 "
            f"of shape ({rows}, {columns}), or uint8 with 8 weights per byte"
        )


def write_masks(masks: Mapping[str, Tensor], path: Path) -> None:
    """Write keep masks (bool, 2-D) as packed rows, one bit per weight.

    Raises:
        CheckpointError: The file cannot be written.
    """
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1)) for name, mask in masks.items()}
    with atomic_path(path) as staging:
        save_tensors(packed, staging)
