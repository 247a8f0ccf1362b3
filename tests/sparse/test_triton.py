"""The Triton kernels in Triton's interpreter against float64, and compiled for GPUs that need not be present."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.packing import nm_matrix, same_bits
from torch.nn.functional import linear as dense_linear

from eggs_ptp.core.pack import FLOAT_DTYPES, pack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse import backends, triton
from eggs_ptp.sparse.backends import Backend
from eggs_ptp.sparse.linear import NMLinear
from eggs_ptp.sparse.reference import REFERENCE

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "kernels are compiled in this process (tests/gpu); TRITON_INTERPRET=1 interprets them", allow_module_level=True
    )

PATTERNS = [Pattern(*pair) for pair in ((2, 4), (4, 8), (1, 2), (1, 4), (3, 4), (6, 8), (2, 5), (8, 16), (9, 20))]
EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
TWO_OF_FOUR = Pattern(2, 4)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def bfloat16_as_on_hardware(monkeypatch):
    """Correct Triton's interpreter, which multiplies bfloat16 matrices as integers, and rounds them towards zero."""
    import triton.language as tl
    from triton.runtime import interpreter

    def convert(data, source, _, __):
        raw = torch.from_numpy(np.ascontiguousarray(data))
        if source == tl.bfloat16:
            return raw.view(torch.bfloat16).float().numpy()
        return raw.view(torch.float32).bfloat16().view(torch.uint16).numpy()

    def dot(self, a, b, *rest):
        if a.dtype == tl.bfloat16:
            a, b = (
                interpreter.TensorHandle(convert(handle.data, a.dtype, None, None), tl.float32) for handle in (a, b)
            )
        return original_dot(self, a, b, *rest)

    original_dot = interpreter.InterpreterBuilder.create_dot
    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    with np.errstate(all="ignore"):  # some tests multiply infinity by zero
        yield


def state_of(weight, pattern, processors=1):
    return triton.State(pack(weight, pattern), triton.bit_positions(CPU), processors)


def inputs(batch, columns, dtype, seed=1):
    return torch.randn(batch, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close_to_float64(y, x, weight):
    """Within the error of summing in float32 in any order and rounding once."""
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    bound = size * weight.shape[1] * 2.0**-23 + exact.abs() * EPSILON[x.dtype] * 1.01 + 1e-30
    assert y.dtype == x.dtype
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_products_match_float64(pattern, dtype):
    """One input directly, several by tiles, many unpacked; rows and columns that do not fill a tile."""
    weight = nm_matrix(6, 12 * pattern.group, pattern, dtype, zeros=0.1)
    for batch, processors in ((1, 1), (3, 1), (130, 1)):
        x = inputs(batch, weight.shape[1], dtype)
        assert_close_to_float64(triton.linear(x, state_of(weight, pattern, processors)), x, weight)


@pytest.mark.parametrize(("pattern", "batch"), [("2:4", 1), ("4:8", 1), ("9:20", 1), ("2:4", 17), ("2:5", 17)])
def test_split_columns_are_added_up(pattern, batch):
    """With columns enough for every part of a split, the last one not full."""
    pattern = Pattern(*map(int, pattern.split(":")))
    weight = nm_matrix(3, 1240 // pattern.group * pattern.group, pattern, torch.bfloat16)
    x = inputs(batch, weight.shape[1], torch.bfloat16)
    unsplit, split = (state_of(weight, pattern, processors) for processors in (0, 64))
    assert triton.column_splits(split.packed, 1, 64, 64)[0] > 1 == triton.column_splits(unsplit.packed, 1, 64, 0)[0]
    assert_close_to_float64(triton.linear(x, split), x, weight)
    assert_close_to_float64(triton.linear(x, unsplit), x, weight)
    assert torch.equal(triton.linear(x, split), triton.linear(x, split))


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (4, 8), (5, 12), (67, 36), (9, 1036)])
def test_shapes_that_do_not_fill_a_tile(rows, columns):
    weight = nm_matrix(rows, columns, Pattern(2, 4), torch.float16)
    for batch in (1, 2, 16):
        x = inputs(batch, columns, torch.float16)
        assert_close_to_float64(triton.linear(x, state_of(weight, Pattern(2, 4))), x, weight)


def test_several_inputs_can_be_multiplied_one_after_the_other():
    weight, x = nm_matrix(6, 72, Pattern(4, 8)), inputs(3, 72, torch.float32)
    assert_close_to_float64(triton.multiply_directly(x, state_of(weight, Pattern(4, 8))), x, weight)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_unpacking_gives_every_bit(pattern, dtype):
    weight = nm_matrix(19, 9 * pattern.group, pattern, dtype, zeros=0.3)
    kept = weight.nonzero()
    for (row, column), special in zip(kept[:4], (float("inf"), float("nan"), -float("inf"), 1e-40), strict=True):
        weight[row, column] = special
    state = state_of(weight, pattern)
    for unpacked in (triton.unpacked(state), triton.unpacked(state_of(weight, pattern, 64))):
        assert torch.equal(unpacked.isnan(), weight.isnan())
        assert same_bits(unpacked.masked_fill(weight.isnan(), 0), weight.masked_fill(weight.isnan(), 0))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8), Pattern(2, 5)], ids=str)
def test_special_inputs_give_the_results_of_the_dense_product(pattern, dtype):
    """Infinity times a pruned weight is NaN, as in the dense product."""
    weight = nm_matrix(8, 40, pattern, dtype)
    x = inputs(6, 40, dtype)
    x[0, 3], x[1, 5], x[2, 39] = float("inf"), float("-inf"), float("nan")
    x[3] = torch.finfo(dtype).smallest_normal / 4
    x[4] = -0.0
    x[5] = torch.finfo(dtype).max / (1 if dtype == torch.float16 else 1000)  # sums overflow only in the last rounding
    dense = dense_linear(x.float(), weight.float()).to(dtype)
    state = state_of(weight, pattern)
    for y in (triton.linear(x, state), torch.cat([triton.linear(row[None], state) for row in x])):
        torch.testing.assert_close(y, dense, equal_nan=True, atol=1e-45, rtol=3 * EPSILON[dtype] + 1e-5)
        assert bool(y[:3].isfinite().logical_not().all())
        assert bool(y[3].count_nonzero())
        assert not torch.signbit(y[4]).any()


def test_infinities_of_kept_weights_stay_and_those_of_pruned_ones_give_nan():
    weight = torch.zeros(4, 8)
    weight[:, [0, 1, 4, 5]] = 1.0
    x = torch.ones(1, 8)
    x[0, 4] = float("inf")
    assert triton.linear(x, state_of(weight, Pattern(2, 4))).tolist() == [[float("inf")] * 4]
    x[0, 7] = float("inf")
    assert triton.linear(x, state_of(weight, Pattern(2, 4))).isnan().all()


@pytest.mark.parametrize("batch", [1, 3])
def test_special_weights_give_the_results_of_the_dense_product(batch):
    weight = nm_matrix(8, 16, Pattern(2, 4))
    weight[0, weight[0].nonzero()[0]] = float("inf")
    weight[1, weight[1].nonzero()[0]] = float("nan")
    weight[2] *= 1e-40
    x = inputs(batch, 16, torch.float32)
    y = triton.linear(x, state_of(weight, Pattern(2, 4)))
    torch.testing.assert_close(y, x @ weight.T, equal_nan=True, rtol=1e-6, atol=1e-44)
    assert bool(y[:, 2].count_nonzero())


@pytest.fixture
def module(monkeypatch):
    """A packed layer whose products this backend computes, interpreted on the CPU."""
    interpreted = Backend("triton", "interpreted", lambda *_: None, triton.prepare, triton.linear)
    monkeypatch.setattr(backends, "registered_backends", lambda: (interpreted, REFERENCE))
    weight = nm_matrix(12, 40, Pattern(2, 4))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    return NMLinear(pack(weight[:, order.argsort()], Pattern(2, 4), order), torch.arange(12.0))


def test_the_module_takes_inputs_of_any_shape(module):
    dense = module.dense()
    x = inputs(60, 40, torch.float32)
    for inputs_of_a_shape in (x[0], x[:1], x[::20], x.view(3, 20, 40)[:, ::7], x.T.contiguous().T[:2]):
        torch.testing.assert_close(module(inputs_of_a_shape), dense(inputs_of_a_shape))
    assert module(x[:0]).shape == (0, 12)
    assert module(x.view(3, 20, 40)[:, :0]).shape == (3, 0, 12)


def test_the_module_compiles_and_passes_the_gradient_of_its_input(module):
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = inputs(2, 40, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module.dense()(x))
    module(x.requires_grad_()).sum().backward()
    torch.testing.assert_close(x.grad, module.dense().weight.sum(0).expand_as(x))


@given(
    st.sampled_from(PATTERNS),
    st.integers(1, 500),
    st.sampled_from([8, 32, 64]),
    st.integers(1, 40),
    st.integers(1, 200),
)
@settings(max_examples=60, deadline=None)
def test_splits_begin_with_groups_and_cover_the_columns(pattern, groups, width, row_tiles, processors):
    columns = groups * pattern.group
    packed = pack(torch.zeros(1, columns), pattern)
    splits, size = triton.column_splits(packed, row_tiles, width, processors)
    assert splits * size * 8 >= columns > (splits - 1) * size * 8
    assert size * 8 % pattern.group == 0
    assert size >= width
    assert splits == 1 or row_tiles < 2 * processors


@pytest.mark.parametrize(
    "pattern", [Pattern(2, 4), Pattern(4, 8), Pattern(9, 20), Pattern(8, 16), Pattern(7, 8)], ids=str
)
def test_a_byte_has_no_more_values_than_slots(pattern):
    bits = pack(nm_matrix(50, 40 * pattern.group, pattern), pattern).bits
    counts = (bits[..., None] >> torch.arange(8)).bitwise_and(1).sum(-1)
    assert counts.max() <= triton.max_values_per_byte(pattern)


def reason_for(device=CUDA, dtype=torch.bfloat16, pattern=TWO_OF_FOUR, batch=1):
    return triton.unsupported_reason(device, dtype, pattern, 4096, 4096, batch)


def test_unsupported_products_and_machines_are_refused_with_the_reason(monkeypatch):
    triton.missing_requirement.cache_clear()
    assert reason_for(CPU) == "device cpu: supports NVIDIA GPUs only"
    assert reason_for(dtype=torch.float64) == "type torch.float64: supports float32, bfloat16 and float16"
    if not torch.cuda.is_available():
        assert reason_for() == "torch finds no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, reason in (((7, 5), "compute capability 7.5: needs 8.0"), ((8, 0), None), ((12, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        triton.missing_requirement.cache_clear()
        assert reason_for() == reason
    assert reason_for(pattern=Pattern(9, 20), batch=5000) is None
    for installed, reason in (
        ("3.2.0", "triton 3.2.0: needs 3.3 or later"),
        (None, "triton is not installed; pip install triton"),
    ):
        monkeypatch.setattr(triton, "version", lambda _, installed=installed: installed or missing())
        triton.missing_requirement.cache_clear()
        assert reason_for() == reason
    monkeypatch.setattr(torch.version, "hip", "6.4")
    triton.missing_requirement.cache_clear()
    assert reason_for() == "this torch was built for AMD GPUs, and the kernels are written for NVIDIA's"
    triton.missing_requirement.cache_clear()


def missing():
    raise triton.PackageNotFoundError("triton")


def compiled_for(tmp_path, *launches):
    """The kernels that launches (pattern, type, rows, columns, batch, compute capability) compile to."""
    script = Path(__file__).with_name("triton_targets.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, "-W", "ignore", script, json.dumps(launches)]
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


def test_kernels_compile_for_a_real_gpu(tmp_path):
    """To machine code for compute capability 9.0: Triton brings the assembler. Timing it needs a GPU."""
    launches = [("2:4", 1024, 1), ("2:4", 1024, 16), ("4:8", 1024, 1), ("9:20", 320, 200)]
    kernels = compiled_for(tmp_path, *((pattern, "bfloat16", 64, *sizes, 90) for pattern, *sizes in launches))
    assert {kernel["kernel"] for kernel in kernels} == {"product", "product_2_of_4", "by_tiles", "unpack", "add_splits"}
    assert all(kernel["bytes"] > 1000 for kernel in kernels)
    for kernel in kernels:
        if kernel["kernel"] == "by_tiles":
            assert "wgmma.mma_async" in kernel["ptx"]  # tensor cores
        elif kernel["kernel"] == "product_2_of_4":
            assert "ld.global.v4.b32" in kernel["ptx"]  # eight inputs at once


@pytest.mark.slow
def test_kernels_compile_for_every_type_and_generation(tmp_path):
    launches = [
        (pattern, kind, 256, columns, batch, capability)
        for pattern, columns, batch in (("2:4", 1024, 1), ("2:4", 1024, 128), ("9:20", 980, 1), ("4:8", 1024, 16))
        for kind in ("float32", "bfloat16", "float16")
        for capability in (80, 90, 100)
    ]
    assert len(compiled_for(tmp_path, *launches)) > len(launches)
