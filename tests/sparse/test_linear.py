"""NMLinear in the place of nn.Linear: shapes, moves, copies, files, compilation, autocast and gradients."""

import copy
import gc
import io
import weakref

import pytest
import torch
from oracles.packing import nm_matrix, same_bits
from torch import nn

from eggs_ptp.core.pack import pack, quantise, unpack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import BackendError
from eggs_ptp.sparse import backends
from eggs_ptp.sparse.backends import Backend, using
from eggs_ptp.sparse.linear import NMLinear, packed_linear
from eggs_ptp.sparse.reference import REFERENCE

PATTERN = Pattern(2, 4)


def layer(*, ordered=False, bias=True, dtype=torch.float32, seed=0, rows=12, columns=16):
    """A packed layer, and the dense weight and bias that it was packed from."""
    weight = nm_matrix(rows, columns, PATTERN, dtype, seed)
    order = None
    if ordered:
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))
        weight = torch.empty_like(weight).index_copy_(1, order, weight)
    offset = torch.linspace(-1, 1, rows).to(dtype) if bias else None
    return NMLinear(pack(weight, PATTERN, order), offset), weight, offset


def dense(x, weight, bias):
    return nn.functional.linear(x, weight, bias)


@pytest.fixture
def recording(monkeypatch):
    """A backend before the reference that records the matrices it prepares and the states it computes with."""
    prepared, computed = [], []

    def prepare(packed):
        prepared.append(packed)
        return packed

    def linear(x, state):
        computed.append(state)
        return REFERENCE.linear(x, state)

    backend = Backend("recording", "for the test", lambda *_: None, prepare, linear)
    monkeypatch.setattr(backends, "registered_backends", lambda: (backend, REFERENCE))
    return prepared, computed


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(16,), (1, 16), (3, 16), (2, 3, 16), (2, 1, 3, 16)])
def test_products_are_those_of_the_dense_layer(ordered, bias, shape):
    module, weight, offset = layer(ordered=ordered, bias=bias)
    x = torch.randn(shape)
    y = module(x)
    assert y.shape == (*shape[:-1], 12)
    torch.testing.assert_close(y, dense(x, weight, offset))


def quantised(kind, *, dtype=torch.float32, ordered=False):
    """A quantised layer, and the dense weight and bias that it is equal to."""
    module, _, offset = layer(ordered=ordered, dtype=dtype)
    packed = quantise(module.packed, kind)
    return NMLinear(packed, offset), unpack(packed), offset


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("backend", ["reference", None])
def test_products_of_quantised_values_are_those_of_their_dense_layer(kind, ordered, backend):
    module, weight, offset = quantised(kind, ordered=ordered)
    x = torch.randn(2, 3, 16)
    with using(backend):
        torch.testing.assert_close(module(x), dense(x, weight, offset))
    assert same_bits(module.dense().weight.detach(), weight)
    assert f", 2:4, {kind}" in repr(module)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_layers_are_moved_copied_and_stored(kind):
    module, weight, _ = quantised(kind, ordered=True)
    x, state = torch.randn(3, 16), module.state_dict()
    assert sorted(state) == ["bias", "bits", "order", "scales", "values"]
    before = module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    filled = NMLinear.empty(nn.Linear(16, 12), PATTERN, ordered=True, values=kind)
    filled.load_state_dict(state)
    for equal_layer in (copy.deepcopy(module), torch.load(file, weights_only=False), filled):
        assert torch.equal(equal_layer(x), before)
    dtypes = module.values.dtype, module.bits.dtype
    module.to(torch.bfloat16)
    assert (module.values.dtype, module.bits.dtype) == dtypes
    assert module.scales.dtype == module.packed.dtype == torch.bfloat16
    torch.testing.assert_close(module.dense().weight.float(), weight, rtol=0.01, atol=0.01)
    assert module(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(BackendError, match=r"type torch\.bfloat16, got \(3, 16\), torch\.float32"):
        module(x)
    filled.scales.fill_(-1)
    with pytest.raises(RuntimeError, match="0: scales must be finite and not negative"):
        nn.Sequential(NMLinear(module.packed)).load_state_dict(
            {f"0.{name}": tensor for name, tensor in filled.state_dict().items() if name != "bias"}
        )


def test_changed_scales_are_prepared_again():
    module, _, offset = quantised("int8")
    x = torch.randn(2, 16)
    before = module(x)
    module.scales.mul_(2)
    torch.testing.assert_close(module(x) - offset, 2 * (before - offset))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_layers_compile_without_a_graph_break(kind):
    module, weight, offset = quantised(kind)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 16)
    torch.testing.assert_close(compiled(x), dense(x, weight, offset))
    arguments = (x, module.values, module.bits, None, module.bias, 2, 4, "", module.scales)
    torch.library.opcheck(torch.ops.eggs_ptp.nm_linear.default, arguments)


@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (0, 0, 16)])
def test_empty_batches(shape):
    module, weight, offset = layer(ordered=True)
    assert module(torch.empty(shape)).shape == dense(torch.empty(shape), weight, offset).shape


def test_inputs_that_are_not_contiguous():
    module, weight, offset = layer(ordered=True)
    plain, _, _ = layer()
    for x in (torch.randn(16, 5).T, torch.randn(3, 2, 32)[..., ::2], torch.randn(4, 1, 16).expand(4, 3, 16)):
        torch.testing.assert_close(module(x), dense(x, weight, offset))
        torch.testing.assert_close(plain(x), plain(x.contiguous()), rtol=0, atol=0)


def test_to_changes_the_type_of_values_and_bias_only():
    module, weight, offset = layer(ordered=True)
    bits, order = module.bits.clone(), module.order.clone()
    module.to(torch.bfloat16)
    assert (module.values.dtype, module.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(module.bits, bits)
    assert torch.equal(module.order, order)
    assert module.order.dtype == torch.int32
    x = torch.randn(4, 16).bfloat16()
    torch.testing.assert_close(module(x), dense(x, weight.bfloat16(), offset.bfloat16()), rtol=0.02, atol=0.02)
    assert module.to("meta")(x.to("meta")).shape == (4, 12)


def test_inputs_of_another_type_or_width_are_refused():
    module, _, _ = layer()
    for x in (torch.randn(2, 16).bfloat16(), torch.randn(2, 8)):
        with pytest.raises(
            BackendError,
            match=r"^packed matrix \(12, 16\): expected x of 16 features and type torch\.float32, got \(2, \d+\)",
        ):
            module(x)


def test_state_dicts_round_trip():
    module, weight, offset = layer(ordered=True)
    state = module.state_dict()
    assert sorted(state) == ["bias", "bits", "order", "values"]
    target, _, _ = layer(ordered=True, seed=1)
    x = torch.randn(3, 16)
    target(x)  # states that were prepared for the old values must not survive
    target.load_state_dict(state)
    torch.testing.assert_close(target(x), dense(x, weight, offset))
    with pytest.raises(RuntimeError, match="Missing key"):
        target.load_state_dict({name: tensor for name, tensor in state.items() if name != "bits"})


def test_state_dicts_with_damaged_bits_are_refused():
    module, _, _ = layer()
    state = {**module.state_dict(), "bits": module.bits ^ 1}
    holder = nn.Sequential(module)
    with pytest.raises(RuntimeError, match=r"0: the bits of \d+ groups do not mark 2 of 4 columns"):
        holder.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})


def test_an_empty_layer_takes_the_shape_of_a_dense_one():
    linear = nn.Linear(16, 12, dtype=torch.bfloat16)
    empty = NMLinear.empty(linear, PATTERN, ordered=True)
    module, _, _ = layer(ordered=True, dtype=torch.bfloat16)
    assert {name: (t.dtype, t.shape) for name, t in empty.state_dict().items()} == {
        name: (t.dtype, t.shape) for name, t in module.state_dict().items()
    }
    empty.load_state_dict(module.state_dict())
    x = torch.randn(2, 16).bfloat16()
    assert same_bits(empty(x), module(x))
    assert NMLinear.empty(nn.Linear(16, 12, bias=False), PATTERN).bias is None


def test_copies_and_loaded_modules_share_no_tensors():
    module, _, offset = layer(ordered=True)
    x = torch.randn(3, 16)
    before = module(x)
    copied = copy.deepcopy(module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    module.values.zero_()
    assert bool((module(x) == offset).all())
    for independent in (copied, loaded):
        assert torch.equal(independent(x), before)
        assert (independent.pattern, independent.in_features, independent.out_features) == (PATTERN, 16, 12)


def test_dense_gives_the_weight_back():
    module, weight, offset = layer(ordered=True)
    linear = module.dense()
    assert same_bits(linear.weight.detach(), weight)
    assert same_bits(linear.bias.detach(), offset)
    assert (linear.in_features, linear.out_features) == (16, 12)


def test_states_are_prepared_once_and_again_after_a_change(recording):
    prepared, _ = recording
    module, weight, offset = layer()
    x = torch.randn(2, 16)
    module(x)
    module(x)
    assert len(prepared) == 1
    with using("reference"):
        module(x)
    assert len(prepared) == 1
    module.values.mul_(2.0)
    torch.testing.assert_close(module(x), 2 * dense(x, weight, None) + offset)
    assert len(prepared) == 2
    module.double()
    module(x.double())
    assert len(prepared) == 3
    module.double()  # changes nothing
    module(x.double())
    assert len(prepared) == 3


def test_states_do_not_keep_the_tensors_of_a_moved_module(recording):
    """accelerate replaces buffers without calling any method of the module."""
    prepared, computed = recording
    module, _, _ = layer()
    module(torch.randn(2, 16))
    alias = weakref.ref(prepared[0].values)
    prepared.clear()
    computed.clear()
    module._buffers["values"] = module.values.to("meta")
    gc.collect()
    assert alias() is None


def test_a_module_is_freed(recording):
    prepared, computed = recording
    module, _, _ = layer()
    with torch.no_grad():
        torch.ops.eggs_ptp.nm_linear(torch.randn(2, 16), module.values, module.bits, None, module.bias, 2, 4, "")
    assert len(prepared) == 1
    prepared.clear()
    computed.clear()
    reference = weakref.ref(module)
    del module
    gc.collect()
    assert reference() is None


def test_the_operator_uses_the_states_of_its_module(recording):
    prepared, _ = recording
    module, weight, offset = layer(ordered=True)
    x = torch.randn(2, 16)
    module(x)
    arguments = (module.values, module.bits, module.order, module.bias, 2, 4, "")
    torch.testing.assert_close(torch.ops.eggs_ptp.nm_linear(x, *arguments), dense(x, weight, offset))
    assert len(prepared) == 1
    copied = (module.values.clone(), *arguments[1:])  # of no module
    torch.testing.assert_close(torch.ops.eggs_ptp.nm_linear(x, *copied), dense(x, weight, offset))
    assert len(prepared) == 2


def test_the_operator_passes_the_checks_of_torch():
    module, _, _ = layer(ordered=True)
    for shape in ((3, 16), (2, 0, 16)):
        arguments = (torch.randn(shape), module.values, module.bits, module.order, module.bias, 2, 4, "")
        torch.library.opcheck(torch.ops.eggs_ptp.nm_linear.default, arguments)


@pytest.mark.parametrize("ordered", [False, True])
def test_it_compiles_without_a_graph_break(recording, ordered):
    prepared, _ = recording
    first, weight, offset = layer(ordered=ordered, rows=16)
    second, second_weight, second_offset = layer(seed=1)
    model = nn.Sequential(first, nn.ReLU(), second)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for batch in (1, 3, 5):
            x = torch.randn(batch, 16)
            expected = dense(dense(x, weight, offset).relu(), second_weight, second_offset)
            torch.testing.assert_close(compiled(x), expected)
    assert len(prepared) == 2  # the compiled graph uses the states of the modules
    model.double()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x.double()).float(), expected)


def gradient_of(function, x, y_gradient):
    x = x.clone().requires_grad_()
    (function(x) * y_gradient).sum().backward()
    return x.grad


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 16)])
@pytest.mark.parametrize("tile", [16, 1 << 20])
def test_the_gradient_of_the_input_is_that_of_the_dense_layer(ordered, shape, tile, monkeypatch):
    monkeypatch.setattr("eggs_ptp.sparse.linear._TILE", tile)
    module, weight, offset = layer(ordered=ordered)
    x = torch.randn(shape)
    y_gradient = torch.randn(*shape[:-1], 12)
    expected = gradient_of(lambda x: dense(x, weight, offset), x, y_gradient)
    torch.testing.assert_close(gradient_of(module, x, y_gradient), expected)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient_of(compiled, x, y_gradient), expected)
    assert not list(module.parameters())
    with torch.no_grad():
        assert not module(x.requires_grad_()).requires_grad


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_layers_pass_the_gradient_of_their_dequantised_weight(kind):
    module, weight, _ = quantised(kind)
    x, y_gradient = torch.randn(3, 16), torch.randn(3, 12)
    torch.testing.assert_close(gradient_of(module, x, y_gradient), y_gradient @ weight)


def test_a_gradient_of_the_packed_weight_is_refused_in_the_forward_pass():
    module, _, _ = layer()
    module.values.requires_grad_()
    for x in (torch.randn(2, 16), torch.randn(2, 16, requires_grad=True)):
        with pytest.raises(BackendError, match=r"got requires_grad; packed weights pass gradients to their input only"):
            module(x)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_type_and_gradient_of_a_dense_layer(weight_dtype, x_dtype, autocast):
    module, weight, offset = layer(dtype=weight_dtype, ordered=True)
    x, y_gradient = torch.randn(3, 16).to(x_dtype), torch.randn(3, 12)
    with torch.autocast("cpu", dtype=autocast):
        y, expected = module(x), dense(x, weight, offset)
        assert y.dtype == expected.dtype == autocast
        torch.testing.assert_close(y, expected, atol=0.05, rtol=0.02)
        gradients = [gradient_of(function, x, y_gradient) for function in (module, lambda x: dense(x, weight, offset))]
    torch.testing.assert_close(*gradients, atol=0.05, rtol=0.02)


def test_inference_mode():
    with torch.inference_mode():
        module, weight, offset = layer(ordered=True)
        x = torch.randn(2, 16)
        torch.testing.assert_close(module(x), dense(x, weight, offset))
    plain, weight, offset = layer()
    with torch.inference_mode():
        torch.testing.assert_close(plain(x), dense(x, weight, offset))


def test_a_backend_can_be_forced_by_argument(recording):
    prepared, _ = recording
    weight = nm_matrix(4, 8, PATTERN)
    module = NMLinear(pack(weight, PATTERN), backend="reference")
    module(torch.randn(1, 8))
    assert not prepared
    with pytest.raises(BackendError, match="does not exist"):
        NMLinear(pack(weight, PATTERN), backend="fast")


@pytest.mark.parametrize("ordered", [False, True])
def test_the_product_is_a_function_of_the_packed_tensors(recording, ordered):
    prepared, _ = recording
    module, weight, offset = layer(ordered=ordered)
    x = torch.randn(2, 3, 16)
    assert torch.equal(packed_linear(x, module.packed, module.bias), module(x))
    torch.testing.assert_close(packed_linear(x, module.packed), dense(x, weight, None))
    assert len(prepared) == 3  # twice for one call alone, and once by the module
    calls = []
    packed_linear(
        x, module.packed, state_of=lambda backend: calls.append(backend.name) or module.backend_state(backend)
    )
    assert calls == ["recording"]
    assert len(prepared) == 3
    assert torch.equal(packed_linear(x, module.packed, offset, backend="reference"), module(x))
    with pytest.raises(BackendError, match="backend 'fast' does not exist"):
        packed_linear(x, module.packed, backend="fast")
    with pytest.raises(
        BackendError,
        match=r"^packed matrix \(12, 16\): expected x of 16 features and type torch\.float32, got \(2, 8\)",
    ):
        packed_linear(torch.randn(2, 8), module.packed)


def test_print_shows_the_pattern():
    assert repr(layer(ordered=True)[0]) == "NMLinear(in_features=16, out_features=12, bias=True, 2:4, ordered)"
