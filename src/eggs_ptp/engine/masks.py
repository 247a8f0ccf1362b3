"""Mask files: keep masks of many matrices, one bit a weight, in and out."""

import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from eggs_ptp.core.whole_file import whole_file
from eggs_ptp.engine.shards import save_tensors
from eggs_ptp.engine.tensor_file import TensorFile
from eggs_ptp.errors import CheckpointError, ModelError

# What reading a .npz raises: no zip, no array or a pickled one, one that is cut short, or packed in an unknown way.
_FAULTS = (OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError)


class MaskFile:
    """Keep masks by matrix name, from `.safetensors` or `.npz` (never pickled); one is read when it is asked for.

    An entry is called as the matrix is, or that with `.weight`, `.mask` or `.weight.mask` (as MaskLLM does). It has the
    matrix's shape and holds 0 and 1 (or booleans), or it is packed: uint8, 8 weights a byte along each row, or over the
    flattened matrix, the first weight in the highest bit, as `numpy.packbits` does.

    Raises:
        CheckpointError: missing, not readable, or neither of the two kinds.
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
        except (*_FAULTS, ModelError) as error:
            raise CheckpointError(f"mask file {path}: cannot be read ({error})") from error

    def read(self, name: str, rows: int, columns: int) -> Tensor:
        """The keep mask of a matrix, bool (rows, columns).

        Raises:
            CheckpointError: no entry for it, one that is no mask of that shape, or one that cannot be read.
        """
        for key in (name, f"{name}.weight", f"{name}.mask", f"{name}.weight.mask"):
            if key in self._names:
                break
        else:
            raise CheckpointError(f"mask file {self.path}: no entry for {name}; leave the matrix out with --exclude")
        try:
            found = self._array(key, rows, columns) if self.path.suffix == ".npz" else self._tensor(key, rows, columns)
        except (*_FAULTS, ModelError) as error:
            raise CheckpointError(f"mask file {self.path}: {name} cannot be read ({error})") from error
        if found.shape == (rows, columns) and bool(((found == 0) | (found == 1)).all()):
            return found.bool()
        if found.dtype == torch.uint8:
            packed = found.numpy()
            if packed.shape == (rows, -(-columns // 8)):
                return torch.from_numpy(np.unpackbits(packed, axis=1, count=columns).astype(bool))
            if packed.size == -(-rows * columns // 8):
                flat = np.unpackbits(packed.reshape(-1), count=rows * columns)
                return torch.from_numpy(flat.reshape(rows, columns).astype(bool))
        raise self._misfit(name, found.dtype, tuple(found.shape), rows, columns)

    def _tensor(self, key: str, rows: int, columns: int) -> Tensor:
        file = TensorFile(self.path)
        if prod(file.entries[key].shape) > rows * columns:  # what can be no mask is not read
            raise self._misfit(key, file.entries[key].code, file.entries[key].shape, rows, columns)
        return file.read(key)

    def _array(self, key: str, rows: int, columns: int) -> Tensor:
        with zipfile.ZipFile(self.path) as stored:
            member = f"{key}.npy" if f"{key}.npy" in stored.namelist() else key
            with stored.open(member) as file:
                version = npy.read_magic(file)
                header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = header(file)
            if prod(shape) > rows * columns or dtype.hasobject:
                raise self._misfit(key, dtype, shape, rows, columns)
            with stored.open(member) as file:
                return torch.from_numpy(npy.read_array(file, allow_pickle=False))

    def _misfit(self, name: str, dtype: object, shape: tuple[int, ...], rows: int, columns: int) -> CheckpointError:
        return CheckpointError(
            f"mask file {self.path}: {name} has {str(dtype).removeprefix('torch.')} of shape {shape}, expected 0 and 1 "
            f"of shape ({rows}, {columns}), or uint8 with 8 weights a byte"
        )


def write_masks(masks: Mapping[str, Tensor], path: Path) -> None:
    """Write keep masks (bool, 2-D) as packed rows, one bit a weight.

    Raises:
        CheckpointError: the file cannot be written.
    """
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1)) for name, mask in masks.items()}
    with whole_file(path) as draft:
        save_tensors(packed, draft)
