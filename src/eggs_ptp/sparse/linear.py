"""NMLinear: a linear layer over a packed N:M matrix."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from eggs_ptp.core.layout import check, layout
from eggs_ptp.core.pack import Packed, unpack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import BackendError, EggsError
from eggs_ptp.sparse.backends import Backend, choose, find

_modules: "weakref.WeakSet[NMLinear]" = weakref.WeakSet()
_by_address: "weakref.WeakValueDictionary[int, NMLinear]" = weakref.WeakValueDictionary()


class NMLinear(nn.Module):
    """y = x W^T + b with W packed; takes the place of an `nn.Linear` for inference.

    x is (..., in_features) of the weight's type, y (..., out_features). The tensors are buffers: floats (`values`, or
    the `scales` of quantised ones, and `bias`) change their type with the module, the others never do. `backend` forces
    one of `sparse.backends.table`; without it the choice is made at every call, by device, type, shape and batch.
    `transposed` is the class of the layer whose place it takes where that keeps its weight as (in, out).

    Raises:
        BackendError: there is no such backend; when called, it cannot compute this, or x has another type or width;
            when gradients are asked for.
    """

    values: Tensor
    bits: Tensor
    scales: Tensor | None
    order: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        packed: Packed,
        bias: Tensor | None = None,
        *,
        backend: str | None = None,
        transposed: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if backend is not None:
            find(backend)
        self.pattern, self.backend, self.transposed = packed.pattern, backend, transposed
        self.in_features, self.out_features = packed.columns, packed.rows
        parts = {"scales": None, "order": None, **packed.tensors(), "bias": bias}
        for name, tensor in parts.items():
            self.register_buffer(name, None if tensor is None else tensor.detach())
        self._enlist()

    @classmethod
    def empty(
        cls,
        linear: nn.Module,
        pattern: Pattern,
        *,
        ordered: bool = False,
        values: str | None = None,
        backend: str | None = None,
    ) -> "NMLinear":
        """Room for the packed form of a dense layer, of its shape, type and device, to be filled by a state dict."""
        weight, bias, transposed = parts_of(linear)
        pattern.check_width(weight.shape[1], "linear")
        parts = layout(tuple(weight.shape), weight.dtype, pattern, values, ordered=ordered)
        room: Any = {name: weight.new_empty(shape, dtype=dtype) for name, (dtype, shape) in parts.items()}
        bias = None if bias is None else torch.empty_like(bias)
        packed = Packed(pattern=pattern, columns=weight.shape[1], **room)
        return cls(packed, bias, backend=backend, transposed=transposed)

    @property
    def packed(self) -> Packed:
        """Its matrix, sharing its tensors."""
        return Packed(self.values, self.bits, self.pattern, self.in_features, self.order, self.scales)

    def dense(self) -> nn.Linear:
        """The same layer with its zeros, its weight as (out, in)."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(unpack(self.packed), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone(), requires_grad=False)
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the packed matrix; x (..., in_features) gives (..., out_features)."""
        # The operator is what tracing, compiling and autograd need; otherwise its dispatch costs more than it gives.
        if torch.compiler.is_compiling() or type(x) is not Tensor or x.requires_grad or x.is_meta:
            traced: Tensor = nm_linear(
                x,
                self.values,
                self.bits,
                self.order,
                self.bias,
                self.pattern.keep,
                self.pattern.group,
                self.backend or "",
                self.scales,
            )
            return traced
        return _multiply(x, self.packed, self.bias, self.backend, self)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        ordered = ", ordered" if self.order is not None else ""
        shape = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{shape}, {self.pattern}{f', {self.packed.kind}' if self.scales is not None else ''}{ordered}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_prepared")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._enlist()

    def _enlist(self) -> None:
        self._prepared: dict[str, Any] = {}
        self._prepared_from: tuple[object, ...] = ()
        _modules.add(self)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local: Any, strict: bool, *lists: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local, strict, *lists)
        self._prepared.clear()
        errors = lists[-1]
        if not errors and not self.values.is_meta:
            try:
                check(self.packed, prefix.removesuffix("."))
            except EggsError as error:
                errors.append(str(error))

    def holds(self, packed: Packed) -> bool:
        """Whether these very tensors are its buffers."""
        return (
            self.values.data_ptr() == packed.values.data_ptr()
            and self.bits.data_ptr() == packed.bits.data_ptr()
            and self.values.shape == packed.values.shape
            and self.pattern == packed.pattern
        )

    def prepared(self, backend: Backend) -> Any:
        """The backend's state for this matrix; kept until the tensors move or change."""
        parts = (self.values, self.bits, *(() if self.scales is None else (self.scales,)))
        now = tuple((part.data_ptr(), _version(part)) for part in parts)
        if now != self._prepared_from:
            self._prepared.clear()
            self._prepared_from = now
        if backend.name not in self._prepared:
            if not self._prepared:
                for tensor in parts:  # states hold aliases only, so moving a buffer ends it
                    weakref.finalize(tensor, self._prepared.clear).atexit = False
            scales = None if self.scales is None else self.scales.detach()
            alias = Packed(self.values.detach(), self.bits.detach(), self.pattern, self.in_features, scales=scales)
            self._prepared[backend.name] = backend.prepare(alias)
        return self._prepared[backend.name]


def is_transposed(module: nn.Module) -> bool:
    """Whether it is a `Conv1D` of transformers, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def parts_of(linear: nn.Module) -> tuple[Tensor, Tensor | None, type[nn.Module] | None]:
    """Weight (out, in) and bias of a dense layer, and its class where it keeps that weight as (in, out)."""
    layer: Any = linear
    return (layer.weight.T, layer.bias, type(linear)) if is_transposed(linear) else (layer.weight, layer.bias, None)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; those made in inference mode do not count."""
    return -1 if tensor.is_inference() else tensor._version


@torch.library.custom_op("eggs_ptp::nm_linear", mutates_args=())
def nm_linear(
    x: Tensor,
    values: Tensor,
    bits: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    keep: int,
    group: int,
    backend: str,
    scales: Tensor | None = None,
) -> Tensor:
    """Y = x W^T + b as an operator of tensors alone. The states of the module that they belong to are used."""
    packed = Packed(values, bits, Pattern(keep, group), x.shape[-1], order, scales)
    return _multiply(x, packed, bias, backend or None, _owner(packed))


@nm_linear.register_fake
def _(x: Tensor, values: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])


def _refuse(*_: object) -> None:
    raise BackendError("packed N:M matrices pass no gradients; export the folder as dense, and train that")


nm_linear.register_autograd(_refuse)


def _owner(packed: Packed) -> NMLinear | None:
    """The module that these tensors are the buffers of."""
    address = packed.values.data_ptr()
    known = _by_address.get(address)
    if known is not None and known.holds(packed):
        return known
    found = next((module for module in _modules if module.holds(packed)), None)
    if found is not None:
        _by_address[address] = found
    return found


def _multiply(x: Tensor, packed: Packed, bias: Tensor | None, backend: str | None, module: NMLinear | None) -> Tensor:
    rows, columns = packed.rows, packed.columns
    if x.shape[-1] != columns or x.dtype != packed.dtype:
        raise BackendError(
            f"expected x of {columns} features and type {packed.dtype}, got {tuple(x.shape)}, {x.dtype}; "
            "convert x or the module (autocast does not reach packed matrices)"
        )
    flat = x.reshape(-1, columns)
    batch = flat.shape[0]
    if not batch or not rows:
        return x.new_empty(*x.shape[:-1], rows)
    chosen = choose(x.device, x.dtype, packed.pattern, rows, columns, batch, name=backend, kind=packed.kind)
    state = chosen.prepare(packed) if module is None else module.prepared(chosen)
    y = chosen.linear(flat.contiguous() if packed.order is None else flat.index_select(1, packed.order), state)
    if bias is not None:
        y += bias
    return y.view(*x.shape[:-1], rows)
