"""NMLinear: a linear layer over a packed N:M matrix; and `packed_linear`, the product that it computes."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eggs_ptp.core.layout import check_packed, packed_layout
from eggs_ptp.core.pack import Packed, expand, unpack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import BackendError, EggsError
from eggs_ptp.sparse.backends import Backend, choose_backend, find_backend

_TILE = 1 << 20  # weights made dense at a time in a backward pass
_AUTOCAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # the types that autocast converts
_live_layers: "weakref.WeakSet[NMLinear]" = weakref.WeakSet()
_layer_by_address: "weakref.WeakValueDictionary[int, NMLinear]" = weakref.WeakValueDictionary()


def packed_linear(
    x: Tensor,
    packed: Packed,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
    state_of: Callable[[Backend], Any] | None = None,
) -> Tensor:
    """Compute y = x W^T + b with a packed W, by the backend that is chosen for this product.

    For layers of other libraries that hold the tensors of a packed matrix; `NMLinear` is the layer of this one. It
    passes no gradients, and is not traced by torch.compile: see the operator `nm_linear`. Autocast does not apply.

    Args:
        x: Inputs (..., columns), of the weight's type and on its device.
        packed: The matrix W (rows, columns).
        bias: b (rows,), of the weight's type.
        backend: Name of the backend; None chooses by device, type, pattern, shape and batch.
        state_of: Returns the state that a backend's `prepare` made for this matrix, from wherever the caller keeps
            it. None prepares it for this call alone, which costs little on the CPU, but more than many products where
            a backend converts the matrix.

    Returns:
        y (..., rows), a new tensor of x's type.

    Raises:
        BackendError: x has another type or width than the matrix; the named backend does not exist, or does not
            support this product.
    """
    rows = packed.rows
    columns = packed.columns
    if x.shape[-1] != columns or x.dtype != packed.dtype:
        raise BackendError(
            f"packed matrix ({rows}, {columns}): expected x of {columns} features and type {packed.dtype}, got "
            f"{tuple(x.shape)}, {x.dtype}; convert x or the module, or run it under torch.autocast"
        )
    flat_x = x.reshape(-1, columns)
    batch = flat_x.shape[0]
    if not batch or not rows:
        return x.new_empty(*x.shape[:-1], rows)
    chosen = choose_backend(
        x.device, x.dtype, packed.pattern, rows, columns, batch, name=backend, value_kind=packed.kind
    )
    state = chosen.prepare(packed) if state_of is None else state_of(chosen)
    flat_x = flat_x.contiguous() if packed.order is None else flat_x.index_select(1, packed.order)
    y = chosen.linear(flat_x, state)
    if bias is not None:
        y += bias
    return y.view(*x.shape[:-1], rows)


class NMLinear(nn.Module):
    """A linear layer y = x W^T + b with a packed W, in the place of an `nn.Linear`.

    x is (..., in_features) of the weight's type, y is (..., out_features). Under `torch.autocast` x may have another
    type: the product is computed in the weight's type, and y has autocast's, as that of a dense layer. A backward pass
    gives the gradient of x; there is none of the packed weight. The tensors are buffers. The floats among
    them (`values`, or the `scales` of quantised values, and `bias`) change their type with the module; `bits`, `order`
    and quantised values never do.

    Args:
        packed: The matrix; its tensors become buffers, not copies.
        bias: (out_features,), of the weight's type.
        backend: Name of the backend for all products; None chooses at every call, by device, type, shape and batch.
        transposed: Class of the dense layer that this one replaces, if that stores its weight as (in, out).

    Raises:
        BackendError: There is no such backend; at a call, it does not support the product, x has another type or
            width, or a packed tensor requires a gradient.
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
            find_backend(backend)
        self.pattern = packed.pattern
        self.backend = backend
        self.transposed = transposed
        self.in_features = packed.columns
        self.out_features = packed.rows
        buffers = {"scales": None, "order": None, **packed.tensors(), "bias": bias}
        for name, tensor in buffers.items():
            self.register_buffer(name, None if tensor is None else tensor.detach())
        self._start_tracking()

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
        """Create a layer with uninitialised tensors, to be filled by a state dict.

        Args:
            linear: The dense layer, whose shape, type, device and bias it takes.
            pattern: N:M of the weight.
            ordered: Whether the columns are permuted, so that an `order` is among the tensors.
            values: "int8" or "int4" for quantised values; None for the weight's type.
            backend: As of the class.

        Raises:
            PatternError: The pattern does not fit the width of the layer.
        """
        weight, bias, transposed = dense_parameters(linear)
        pattern.check_width(weight.shape[1], "linear")
        layout = packed_layout(tuple(weight.shape), weight.dtype, pattern, values, ordered=ordered)
        tensors: Any = {name: weight.new_empty(shape, dtype=dtype) for name, (dtype, shape) in layout.items()}
        bias = None if bias is None else torch.empty_like(bias)
        packed = Packed(pattern=pattern, columns=weight.shape[1], **tensors)
        return cls(packed, bias, backend=backend, transposed=transposed)

    @property
    def packed(self) -> Packed:
        """The matrix; it shares the tensors of the layer."""
        return Packed(self.values, self.bits, self.pattern, self.in_features, self.order, self.scales)

    def dense(self) -> nn.Linear:
        """Return the same layer with its zeros, its weight as (out, in)."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(unpack(self.packed), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone(), requires_grad=False)
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the packed matrix; x (..., in_features) gives (..., out_features)."""
        if not x.is_meta and torch.is_autocast_enabled(x.device.type) and x.dtype in _AUTOCAST_DTYPES:
            weight_dtype = (self.values if self.scales is None else self.scales).dtype
            if weight_dtype in _AUTOCAST_DTYPES:
                return self._product(x.to(weight_dtype)).to(torch.get_autocast_dtype(x.device.type))
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        """Multiply x, which has the type of the weight."""
        # Tracing, compiling and autograd need the operator. Otherwise its dispatch would be the larger part of the
        # time of a small product.
        requires_grad = x.requires_grad or self.values.requires_grad
        if torch.compiler.is_compiling() or type(x) is not Tensor or requires_grad or x.is_meta:
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
        return packed_linear(x, self.packed, self.bias, backend=self.backend, state_of=self.backend_state)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of the layer."""
        details = [
            f"in_features={self.in_features}",
            f"out_features={self.out_features}",
            f"bias={self.bias is not None}",
            str(self.pattern),
        ]
        if self.scales is not None:
            details.append(self.packed.kind)
        if self.order is not None:
            details.append("ordered")
        return ", ".join(details)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_backend_states")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._start_tracking()

    def _start_tracking(self) -> None:
        """Start without backend states, and let the operator find this layer by its tensors."""
        self._backend_states: dict[str, Any] = {}
        self._backend_states_version: tuple[object, ...] = ()
        _live_layers.add(self)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        self._backend_states.clear()
        errors = lists[-1]
        if not errors and not self.values.is_meta:
            try:
                check_packed(self.packed, prefix.removesuffix("."))
            except EggsError as error:
                errors.append(str(error))

    def owns(self, packed: Packed) -> bool:
        """Return whether the matrix shares its memory with the buffers of this layer."""
        return (
            self.values.data_ptr() == packed.values.data_ptr()
            and self.bits.data_ptr() == packed.bits.data_ptr()
            and self.values.shape == packed.values.shape
            and self.pattern == packed.pattern
        )

    def backend_state(self, backend: Backend) -> Any:
        """Return the state that a backend prepared for this matrix; kept until the tensors move or change."""
        tensors = [self.values, self.bits]
        if self.scales is not None:
            tensors.append(self.scales)
        version = tuple((tensor.data_ptr(), _change_count(tensor)) for tensor in tensors)
        if version != self._backend_states_version:
            self._backend_states.clear()
            self._backend_states_version = version
        if backend.name not in self._backend_states:
            if not self._backend_states:
                for tensor in tensors:  # states hold aliases of the buffers; without a buffer its state is freed too
                    weakref.finalize(tensor, self._backend_states.clear).atexit = False
            scales = None if self.scales is None else self.scales.detach()
            alias = Packed(self.values.detach(), self.bits.detach(), self.pattern, self.in_features, scales=scales)
            self._backend_states[backend.name] = backend.prepare(alias)
        return self._backend_states[backend.name]


def is_transposed(module: nn.Module) -> bool:
    """Return whether a module is a `Conv1D` of transformers, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def dense_parameters(linear: nn.Module) -> tuple[Tensor, Tensor | None, type[nn.Module] | None]:
    """Return weight (out, in) and bias of a dense layer, and its class if it stores the weight as (in, out)."""
    layer: Any = linear
    if is_transposed(linear):
        return layer.weight.T, layer.bias, type(linear)
    return layer.weight, layer.bias, None


def _change_count(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; tensors made in inference mode do not count it."""
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
    """Compute `packed_linear` as an operator, which torch.compile and autograd can trace.

    If the tensors are the buffers of an `NMLinear`, its backend states are used.

    Args:
        x: Inputs (..., columns).
        values: Values of the packed matrix, as in `Packed`.
        bits: Its bits.
        order: Its column order, if it has one.
        bias: (rows,).
        keep: N of its pattern.
        group: M of its pattern.
        backend: Name of the backend; empty to choose.
        scales: Scales of quantised values.
    """
    packed = Packed(values, bits, Pattern(keep, group), x.shape[-1], order, scales)
    layer = _layer_of(packed)
    state_of = None if layer is None else layer.backend_state
    return packed_linear(x, packed, bias, backend=backend or None, state_of=state_of)


@nm_linear.register_fake
def _(x: Tensor, values: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])


@torch.library.custom_op("eggs_ptp::nm_linear_input_gradient", mutates_args=())
def nm_linear_input_gradient(
    y_gradient: Tensor,
    values: Tensor,
    bits: Tensor,
    order: Tensor | None,
    keep: int,
    group: int,
    columns: int,
    scales: Tensor | None = None,
) -> Tensor:
    """Compute the gradient of x in y = x W^T, which is dL/dy W, with a few rows of W made dense at a time.

    Args:
        y_gradient: dL/dy, (..., rows).
        values: Values of the packed matrix, as in `Packed`.
        bits: Its bits.
        order: Its column order, if it has one.
        keep: N of its pattern.
        group: M of its pattern.
        columns: Its columns.
        scales: Scales of quantised values.

    Returns:
        dL/dx, (..., columns), summed over tiles in float32 and rounded once.
    """
    packed = Packed(values, bits, Pattern(keep, group), columns, order, scales)
    flat = y_gradient.reshape(-1, packed.rows)
    total = flat.new_zeros((flat.shape[0], columns), dtype=torch.promote_types(flat.dtype, torch.float32))
    with torch.autocast(flat.device.type, enabled=False):
        for start, tile in packed.tiles(_TILE):
            total += flat[:, start : start + tile.rows] @ expand(tile)
    gradient = total.to(flat.dtype)
    if order is not None:
        gradient = torch.empty_like(gradient).index_copy_(1, order.long(), gradient)
    return gradient.view(*y_gradient.shape[:-1], columns)


@nm_linear_input_gradient.register_fake
def _(
    y_gradient: Tensor,
    values: Tensor,
    bits: Tensor,
    order: Tensor | None,
    keep: int,
    group: int,
    columns: int,
    scales: Tensor | None = None,
) -> Tensor:
    del values, bits, order, keep, group, scales
    return y_gradient.new_empty(*y_gradient.shape[:-1], columns)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the gradient of x needs; refuse gradients of the packed tensors and of the bias."""
    del output
    x, values, bits, order, bias, keep, group, _, *rest = inputs
    scales = rest[0] if rest else None
    if any(tensor is not None and tensor.requires_grad for tensor in (values, bias, scales)):
        raise BackendError(
            f"packed matrix ({values.shape[0]}, {x.shape[-1]}): expected tensors without gradients, got requires_grad; "
            "packed weights pass gradients to their input only: train adapters on them, or export the folder as dense"
        )
    ctx.save_for_backward(values, bits, order, scales)
    ctx.pattern = (keep, group)
    ctx.columns = x.shape[-1]


def _backward(ctx: Any, y_gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradient of x, and None for all other inputs."""
    values, bits, order, scales = ctx.saved_tensors
    gradient = None
    if ctx.needs_input_grad[0]:
        gradient = nm_linear_input_gradient(y_gradient, values, bits, order, *ctx.pattern, ctx.columns, scales)
    return (gradient, *[None] * 8)


nm_linear.register_autograd(_backward, setup_context=_save_for_backward)


def _layer_of(packed: Packed) -> NMLinear | None:
    """Return the layer that has these tensors as its buffers."""
    address = packed.values.data_ptr()
    known = _layer_by_address.get(address)
    if known is not None and known.owns(packed):
        return known
    for layer in _live_layers:
        if layer.owns(packed):
            _layer_by_address[address] = layer
            return layer
    return None
