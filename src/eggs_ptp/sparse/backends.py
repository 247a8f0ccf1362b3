"""Backends that multiply by a packed N:M matrix: one table of them, and the choice of one for each product.

A backend is a `Backend` value. The built-in ones are listed in `_BUILT_IN`; another package brings its own through the
entry-point group `eggs_ptp.backends`. Its pyproject.toml then has, for a module `fast_nm` with a `Backend` named FAST
whose `name` is "fast":

    [project.entry-points."eggs_ptp.backends"]
    fast = "fast_nm:FAST"

Both kinds are loaded in the same way, at the first product, and are tried in the order of their `priority`.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.core.pack import Packed
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import BackendError

VARIABLE = "EGGS_BACKEND"
GROUP = "eggs_ptp.backends"
_BUILT_IN = tuple(
    EntryPoint(name, f"eggs_ptp.sparse.{value}", GROUP)
    for name, value in (
        ("cpu", "cpu:CPU"),
        ("torch", "torch_core:TORCH_CORE"),
        ("triton", "triton:TRITON"),
        ("reference", "reference:REFERENCE"),
    )
)
_log = logging.getLogger(__name__)
_forced_name: ContextVar[str | None] = ContextVar("backend", default=None)


@dataclass(frozen=True)
class Backend:
    """One way to compute y = x W^T with a packed W (rows, columns) and x (batch, columns).

    Attributes:
        name: Name in `EGGS_BACKEND`, `using` and `eggs doctor`; the same as that of its entry point.
        description: One line for `eggs doctor`: how it computes, and which patterns and values it supports.
        unsupported_reason: Called as (device, dtype, pattern, rows, columns, batch), `dtype` being that of x and of
            the weight. Returns None if this backend computes such a product, and no slower than the backends of lower
            priority; otherwise one line that says why not, and names the value that does not fit ("numba is not
            installed; pip install numba", "batch 64: faster up to 16"). Called before every product, so it
            must be cheap, and must not raise.
        prepare: Returns the state that `linear` needs for a matrix. Called once per module, and again after the
            module's tensors moved or changed. The state stays in memory in addition to the packed tensors, so it
            should consist of views of them: a layout of its own doubles the memory of the model. `packed.order` is
            applied by the caller. Not called for a module that only other backends compute.
        linear: Called as (x, state). Returns y (batch, rows), a new tensor with the dtype and device of x. x is
            (batch, columns), contiguous, with a batch of at least 1, the weight's dtype, and its columns already in
            the packed order. Sums are float32 or better, and rounded once. The caller adds the bias.
        value_kinds: The kinds of values that it reads: "float", "int8", "int4".
        priority: Backends of higher priority are tried first. The built-in ones have 300 (cpu), 200 (torch), 100
            (triton) and 0 (reference, which computes every product). One with a negative priority is used only if it
            is named.
    """

    name: str
    description: str
    unsupported_reason: Callable[[torch.device, torch.dtype, Pattern, int, int, int], str | None]
    prepare: Callable[[Packed], Any]
    linear: Callable[[Tensor, Any], Tensor]
    value_kinds: tuple[str, ...] = ("float",)
    priority: int = 50


@dataclass(frozen=True)
class UnusableBackend:
    """An entry point of another package that gives no backend: its name, the distribution, and the reason."""

    name: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"backend {self.name} of {self.distribution} is not usable: {self.reason}"


def registered_backends() -> tuple[Backend, ...]:
    """Return all backends in the order in which they are tried."""
    return load_backends()[0]


def unusable_backends() -> tuple[UnusableBackend, ...]:
    """Return the entry points of other packages that could not be loaded, or gave no valid `Backend`."""
    return load_backends()[1]


def choose_backend(
    device: torch.device,
    dtype: torch.dtype,
    pattern: Pattern,
    rows: int,
    columns: int,
    batch: int,
    *,
    name: str | None = None,
    value_kind: str = "float",
) -> Backend:
    """Return the backend for a product: the one that is named, or else the first that supports it.

    Args:
        device: Device of x and of the matrix.
        dtype: Type of x and of the weight.
        pattern: N:M of the matrix.
        rows: Output features.
        columns: Input features.
        batch: Number of inputs, all leading dimensions of x together.
        name: The backend to use. Without it that of the innermost `using`, then that of EGGS_BACKEND.
        value_kind: Kind of the matrix's values: "float", "int8" or "int4".

    Raises:
        BackendError: The named backend does not exist, or does not support this product.
    """
    product = (device, dtype, pattern, rows, columns, batch)
    requested = name or _forced_name.get() or os.environ.get(VARIABLE)
    if not requested:
        for backend in registered_backends():
            if value_kind in backend.value_kinds and backend.unsupported_reason(*product) is None:
                return backend
    backend = find_backend(requested or "reference")
    if value_kind not in backend.value_kinds:
        reason: str | None = f"{value_kind} values: supports {', '.join(backend.value_kinds)}"
    else:
        reason = backend.unsupported_reason(*product)
    if reason:
        raise BackendError(f"backend {backend.name}: {reason}; name another one (EGGS_BACKEND, using(...)), or none")
    return backend


def find_backend(name: str) -> Backend:
    """Return the backend of a name.

    Raises:
        BackendError: There is none; or the package that brings it is broken, with the reason.
    """
    backends = registered_backends()
    for backend in backends:
        if backend.name == name:
            return backend
    for unusable in unusable_backends():
        if unusable.name == name:
            raise BackendError(f"{unusable}; repair or remove {unusable.distribution}, or name another backend")
    raise BackendError(f"backend {name!r} does not exist; there are {', '.join(backend.name for backend in backends)}")


@contextmanager
def using(name: str | None) -> Iterator[None]:
    """Use one backend for all products inside a `with` block.

    Args:
        name: The backend; None returns to the choice by shape, batch and device.

    Raises:
        BackendError: There is no backend of this name.
    """
    if name is not None:
        find_backend(name)
    token = _forced_name.set(name)
    try:
        yield
    finally:
        _forced_name.reset(token)


@functools.cache
def load_backends() -> tuple[tuple[Backend, ...], tuple[UnusableBackend, ...]]:
    """Load the table, once per process: registered and unusable backends, see the functions of these names.

    Of equal priorities the built-in backends come first. The line of an unusable backend is logged as a warning.
    """
    backends: list[Backend] = [entry_point.load() for entry_point in _BUILT_IN]
    unusable = []
    for owner, distribution in sorted(_distributions_with_backends().items()):
        try:
            entry_points = sorted(distribution.entry_points.select(group=GROUP), key=lambda entry: entry.name)
        except Exception as error:  # parsing a damaged file may raise anything
            unusable.append(UnusableBackend("?", owner, f"its entry_points.txt cannot be read, {_one_line(error)}"))
            continue
        for entry_point in entry_points:
            try:
                backends.append(_load(entry_point, owner, [backend.name for backend in backends]))
            except BackendError as error:
                unusable.append(UnusableBackend(entry_point.name, owner, str(error)))
    for broken in unusable:
        _log.warning("%s", broken)
    return tuple(sorted(backends, key=lambda backend: -backend.priority)), tuple(unusable)


def _distributions_with_backends() -> dict[str, Distribution]:
    """Return the installed distributions that name the group, by name and version; the first on sys.path of each.

    `importlib.metadata.entry_points` would raise for all of them if any installed distribution were damaged.
    """
    by_name: dict[str, Distribution] = {}
    for distribution in distributions():
        if GROUP in _entry_points_text(distribution):
            by_name.setdefault(_describe(distribution), distribution)
    return by_name


def _entry_points_text(distribution: Distribution) -> str:
    """Return the text of a distribution's entry_points.txt; empty if it has none, or an unreadable one."""
    try:
        return distribution.read_text("entry_points.txt") or ""
    except (OSError, ValueError):
        return ""


def _describe(distribution: Distribution) -> str:
    """Return name and version of a distribution, or the folder that it is in if its metadata cannot be read."""
    try:
        metadata = distribution.metadata
        if "Name" in metadata:
            return f"{metadata['Name']} {distribution.version}"
    except Exception:  # likewise
        _log.debug("unreadable metadata", exc_info=True)
    return f"a distribution in {distribution.locate_file('')}"


def _load(entry_point: EntryPoint, distribution: str, taken: Sequence[str]) -> Backend:
    """Load the backend of an entry point of another package; `taken` are the names that others have.

    Raises:
        BackendError: It cannot be imported, or is not a `Backend` of this name.
    """
    try:
        backend = entry_point.load()
    except (Exception, SystemExit) as error:  # importing runs code of another package, which may raise anything
        raise BackendError(f"{entry_point.value} cannot be loaded, {_one_line(error)}") from error
    if not isinstance(backend, Backend):
        raise BackendError(f"expected {entry_point.value} to be a Backend, got {type(backend).__name__}")
    if backend.name != entry_point.name:
        raise BackendError(f"expected a Backend named {entry_point.name!r} as its entry point, got {backend.name!r}")
    if not isinstance(backend.priority, int):
        raise BackendError(f"expected an integer as the priority of {backend.name!r}, got {backend.priority!r}")
    if backend.name in taken:
        raise BackendError(f"another backend has the name {backend.name!r}")
    return replace(backend, unsupported_reason=_never_raising(backend, distribution))


def _never_raising(backend: Backend, distribution: str) -> Callable[..., str | None]:
    """Wrap the `unsupported_reason` of another package's backend: if it raises, that is the reason."""

    def unsupported_reason(*product: Any) -> str | None:
        try:
            return backend.unsupported_reason(*product)
        except Exception as error:
            return f"unsupported_reason of {distribution} raised {_one_line(error)}"

    return unsupported_reason


def _one_line(error: BaseException) -> str:
    """Return type and message of an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
