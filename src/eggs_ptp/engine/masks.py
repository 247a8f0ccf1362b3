"""Mask files: keep masks of many matrices, one bit a weight, in and out."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eggs_ptp.engine.shards import save_tensors
from eggs_ptp.errors import CheckpointError


class MaskFile:
    """Keep masks by matrix name, from `.safetensors` or `.npz` (never pickled).

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
                with np.load(path, allow_pickle=False) as stored:
                    self._arrays: dict[str, NDArray[np.generic]] = {name: stored[name] for name in stored.files}
            elif path.suffix == ".safetensors":
                with safe_open(str(path), framework="np") as stored:
                    self._arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            else:
                raise CheckpointError(f"mask file {path}: expected .safetensors or .npz")
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"mask file {path}: cannot be read ({error})") from error

    def read(self, name: str, rows: int, columns: int) -> Tensor:
        """The keep mask of a matrix, bool (rows, columns).

        Raises:
            CheckpointError: no entry for it, or one that is no mask of that shape.
        """
        for key in (name, f"{name}.weight", f"{name}.mask", f"{name}.weight.mask"):
            if key in self._arrays:
                found = self._arrays[key]
                break
        else:
            raise CheckpointError(f"mask file {self.path}: no entry for {name}; leave the matrix out with --exclude")
        if found.shape == (rows, columns) and np.isin(found, (0, 1)).all():
            return torch.from_numpy(found.astype(bool))
        if found.dtype == np.uint8:
            packed = np.asarray(found, dtype=np.uint8)
            if packed.shape == (rows, -(-columns // 8)):
                return torch.from_numpy(np.unpackbits(packed, axis=1, count=columns).astype(bool))
            if packed.size == -(-rows * columns // 8):
                flat = np.unpackbits(packed.reshape(-1), count=rows * columns)
                return torch.from_numpy(flat.reshape(rows, columns).astype(bool))
        raise CheckpointError(
            f"mask file {self.path}: {name} has {found.dtype} of shape {found.shape}, expected 0 and 1 of shape "
            f"({rows}, {columns}), or uint8 with 8 weights a byte"
        )


def write_masks(masks: Mapping[str, Tensor], path: Path) -> None:
    """Write keep masks (bool, 2-D) as packed rows, one bit a weight.

    Raises:
        CheckpointError: the file cannot be written.
    """
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1)) for name, mask in masks.items()}
    save_tensors(packed, path)
