"""Stores per-token activations in memory or, beyond a given number of bytes, in memory-mapped files."""

import os
import tempfile
import weakref
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from eggs_ptp.errors import CheckpointError


class ActivationStore:
    """Allocates tensors, of which at most `allowance` bytes together are in memory at once.

    Beyond that, a tensor is a memory-mapped file on the CPU: it is read and written like any other tensor, the system
    may drop its pages, and it is deleted when the process ends, however it ends. A tensor's bytes count until it is
    freed, so views must not outlive it.

    Args:
        allowance: Bytes in memory; None for no limit.
        folder: Where the files go; None for the system's temporary folder.
    """

    def __init__(self, allowance: int | None = None, folder: Path | None = None) -> None:
        self._bytes_left = allowance
        self._folder = folder

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Allocate an uninitialised tensor.

        Raises:
            CheckpointError: The disk has no room for it.
        """
        size = prod(shape) * dtype.itemsize
        if self._bytes_left is None:
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        if size > self._bytes_left:
            return self._memory_mapped(shape, dtype, size)
        tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
        self._bytes_left -= size
        weakref.finalize(tensor, self._release, size)
        return tensor

    def copy(self, tensor: Tensor, device: torch.device | None = None) -> Tensor:
        """Allocate a copy of a tensor."""
        return self.empty(tensor.shape, tensor.dtype, device or tensor.device).copy_(tensor)

    def _release(self, size: int) -> None:
        assert self._bytes_left is not None  # noqa: S101 - only what was counted is released
        self._bytes_left += size

    def _memory_mapped(self, shape: Sequence[int], dtype: torch.dtype, size: int) -> Tensor:
        handle, name = tempfile.mkstemp(prefix="activations-", dir=self._folder)
        try:
            os.posix_fallocate(handle, 0, size)  # finds a full disk here, not when a page is written
            return torch.from_file(name, shared=True, size=prod(shape), dtype=dtype).view(tuple(shape))
        except OSError as error:
            raise CheckpointError(
                f"{Path(name).parent}: no room for {size / 1e9:.1f} GB of activations ({error.strerror}); raise "
                "--memory, or take fewer or shorter windows"
            ) from error
        finally:
            os.close(handle)
            os.unlink(name)  # the mapping remains
