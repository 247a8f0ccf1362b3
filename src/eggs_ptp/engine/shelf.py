"""Shelf: where tensors that hold something for every token stand, in memory as far as it goes, then in files."""

import os
import tempfile
import weakref
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from eggs_ptp.errors import CheckpointError


class Shelf:
    """Makes tensors of which at most `allowance` bytes together are in memory at once; None: any number.

    Beyond that a tensor is a mapped file in `folder`, on the CPU: it is read and written as any other, its pages are
    the system's to drop, and it is gone with the process, however that ends. Every tensor's bytes count until it is
    freed, so views must not outlive it.
    """

    def __init__(self, allowance: int | None = None, folder: Path | None = None) -> None:
        self._left, self._folder = allowance, folder

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of that shape, its values undefined.

        Raises:
            CheckpointError: the disk has no room for it.
        """
        size = prod(shape) * dtype.itemsize
        if self._left is None:
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        if size > self._left:
            return self._mapped(shape, dtype, size)
        tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
        self._left -= size
        weakref.finalize(tensor, self._free, size)
        return tensor

    def copy(self, tensor: Tensor, device: torch.device | None = None) -> Tensor:
        """A tensor of the same values."""
        return self.empty(tensor.shape, tensor.dtype, device or tensor.device).copy_(tensor)

    def _free(self, size: int) -> None:
        assert self._left is not None  # noqa: S101 - only what was counted is freed
        self._left += size

    def _mapped(self, shape: Sequence[int], dtype: torch.dtype, size: int) -> Tensor:
        handle, name = tempfile.mkstemp(prefix="activations-", dir=self._folder)
        try:
            os.posix_fallocate(handle, 0, size)  # a full disk is found here, not when a page is written
            return torch.from_file(name, shared=True, size=prod(shape), dtype=dtype).view(tuple(shape))
        except OSError as error:
            raise CheckpointError(
                f"{Path(name).parent}: no room for {size / 1e9:.1f} GB of activations ({error.strerror}); raise "
                "--memory, or take fewer or shorter windows"
            ) from error
        finally:
            os.close(handle)
            os.unlink(name)  # the mapping stays
