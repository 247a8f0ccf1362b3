"""The backends that can multiply by a packed N:M matrix: one table, in order of preference."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.core.pack import Packed
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import BackendError

VARIABLE = "EGGS_BACKEND"
_forced: ContextVar[str | None] = ContextVar("backend", default=None)


@dataclass(frozen=True)
class Backend:
    """One way to compute y = x W^T with a packed W (rows, columns) and x (batch, columns).

    why_not(device, dtype, pattern, rows, columns, batch): None when this backend computes such a product, and no
        slower than those below it in the table; otherwise one line that says why not, naming what was met ("numba is
        not installed; pip install eggs-ptp[cpu]", "batch 64, faster up to 16"). `dtype` is that of x and of the
        weight. Called before every product: it must be cheap, and never raise.
    prepare(packed): whatever `linear` needs, made once a module and kept until the module's tensors move or change.
        It stays in memory beside the packed tensors themselves, so it should be views of them: a layout of its own
        doubles the memory of the model. `packed.order` is not its concern. Not called for a module that only runs
        elsewhere.
    linear(x, state): y (batch, rows), a new tensor of x's type and device. x is (batch, columns), contiguous, batch
        at least 1, of the weight's type, and already in the packed order. Sums are float32 or better, rounded once.
        The bias is added by the caller.
    """

    name: str
    about: str
    why_not: Callable[[torch.device, torch.dtype, Pattern, int, int, int], str | None]
    prepare: Callable[[Packed], Any]
    linear: Callable[[Tensor, Any], Tensor]
    values: tuple[str, ...] = ("float",)  # kinds of values that it reads: "float", "int8", "int4"

    def lacks(self, kind: str) -> str | None:
        """Why it does not read a kind of values, or None."""
        return None if kind in self.values else f"{kind} values, for {', '.join(self.values)}"


@functools.cache
def table() -> tuple[Backend, ...]:
    """All backends, the preferred ones first; the last one computes everything everywhere."""
    from eggs_ptp.sparse import cpu, reference, torch_core, triton

    return (cpu.CPU, torch_core.TORCH_CORE, triton.TRITON, reference.REFERENCE)


def choose(
    device: torch.device,
    dtype: torch.dtype,
    pattern: Pattern,
    rows: int,
    columns: int,
    batch: int,
    *,
    name: str | None = None,
    kind: str = "float",
) -> Backend:
    """The backend for a product: the one named here, by `using`, or by EGGS_BACKEND; else the first that can.

    `kind` is what its values are: "float", "int8" or "int4".

    Raises:
        BackendError: the named backend does not exist, or cannot compute this product.
    """
    product = (device, dtype, pattern, rows, columns, batch)
    asked = name or _forced.get() or os.environ.get(VARIABLE)
    if not asked:
        return next(each for each in table() if each.lacks(kind) is None and each.why_not(*product) is None)
    backend = find(asked)
    if reason := backend.lacks(kind) or backend.why_not(*product):
        raise BackendError(f"backend {asked}: {reason}; name another one (EGGS_BACKEND, using(...)), or none")
    return backend


def find(name: str) -> Backend:
    """The backend of a name.

    Raises:
        BackendError: there is none.
    """
    for backend in table():
        if backend.name == name:
            return backend
    raise BackendError(f"backend {name!r} does not exist; there are {', '.join(backend.name for backend in table())}")


@contextmanager
def using(name: str | None) -> Iterator[None]:
    """Force a backend inside a `with` block; None returns to the choice by shape, batch and device.

    Raises:
        BackendError: there is no backend of this name.
    """
    if name is not None:
        find(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)
