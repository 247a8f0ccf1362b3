"""On a GPU: every backend that supports a product there against float64, in CUDA graphs and under torch.compile.

python -m pytest tests/gpu -m gpu
"""

import pytest
import torch
from oracles.packing import nm_matrix
from torch.nn.functional import linear as dense_linear

from eggs_ptp.core.pack import FLOAT_DTYPES, expand, pack, unpack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse import torch_core, triton
from eggs_ptp.sparse.backends import choose_backend, using
from eggs_ptp.sparse.linear import NMLinear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
PATTERNS = [Pattern(*pair) for pair in ((2, 4), (4, 8), (1, 2), (1, 4), (3, 4), (6, 8), (2, 5), (8, 16), (9, 20))]
EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
CUDA = torch.device("cuda")


def matrix(rows, columns, pattern, dtype):
    return nm_matrix(rows, columns // pattern.group * pattern.group, pattern, dtype).to(CUDA)


def inputs(batch, columns, dtype):
    return torch.randn(batch, columns, generator=torch.Generator().manual_seed(1)).to(CUDA, dtype)


def assert_close_to_float64(y, x, weight):
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    bound = size * weight.shape[1] * 2.0**-23 + exact.abs() * EPSILON[x.dtype] * 1.01 + 1e-30
    assert y.dtype == x.dtype
    assert bool(((y.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(256, 1024), (1, 40), (67, 2060), (4096, 4096)])
def test_triton_matches_float64(pattern, dtype, rows, columns):
    weight = matrix(rows, columns, pattern, dtype)
    state = triton.prepare(pack(weight, pattern))
    for batch in (1, 2, 7, 16, 33, 128, 129, 300):
        x = inputs(batch, weight.shape[1], dtype)
        assert_close_to_float64(triton.linear(x, state), x, weight)
    x = inputs(3, weight.shape[1], dtype)
    assert_close_to_float64(triton.multiply_directly(x, state), x, weight)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_triton_unpacks_every_bit_and_repeats_itself(pattern):
    packed = pack(matrix(500, 2000, pattern, torch.bfloat16), pattern)
    state = triton.prepare(packed)
    assert torch.equal(triton.unpacked(state).view(torch.int16), expand(packed).view(torch.int16))
    for batch in (1, 16):
        x = inputs(batch, packed.columns, torch.bfloat16)
        assert torch.equal(triton.linear(x, state), triton.linear(x, state))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8), Pattern(2, 5)], ids=str)
def test_special_inputs_give_the_results_of_the_dense_product(pattern, dtype):
    weight = matrix(64, 160, pattern, dtype)
    x = inputs(5, 160, dtype)
    x[0, 3], x[1, 5], x[2, 159] = float("inf"), float("-inf"), float("nan")
    x[3] = torch.finfo(dtype).smallest_normal / 4
    x[4] = -0.0
    dense = dense_linear(x.double(), weight.double()).to(dtype)
    state = triton.prepare(pack(weight, pattern))
    for y in (triton.linear(x, state), torch.cat([triton.linear(row[None], state) for row in x])):
        torch.testing.assert_close(y, dense, equal_nan=True, atol=1e-44, rtol=3 * EPSILON[dtype] + 1e-5)
        assert bool(y[3].count_nonzero())


@pytest.mark.parametrize("batch", [1, 16, 200])
@pytest.mark.parametrize("rows", [256, 8192])
def test_triton_runs_in_cuda_graphs(rows, batch):
    weight = matrix(rows, 1024, Pattern(2, 4), torch.bfloat16)
    layer = NMLinear(pack(weight, Pattern(2, 4)), backend="triton")
    x = inputs(batch, 1024, torch.bfloat16)
    with torch.inference_mode():
        layer(x)  # compiles the kernels
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.mul_(2)
        graph.replay()
    assert_close_to_float64(y, x, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1280, 1283, 4096])
def test_torch_core_matches_float64(monkeypatch, dtype, batch):
    monkeypatch.setenv(torch_core.ALLOW_CUSPARSELT, "1")
    weight = matrix(256, 512, Pattern(2, 4), dtype)
    if reason := torch_core.unsupported_reason(CUDA, dtype, Pattern(2, 4), 256, 512, batch):
        pytest.skip(reason)
    x = inputs(batch, 512, dtype)
    y = torch_core.linear(x, torch_core.prepare(pack(weight, Pattern(2, 4))))
    assert y.is_contiguous()
    assert_close_to_float64(y, x, weight)


@pytest.mark.parametrize("batch", [1, 20, 1500])
def test_the_module_chooses_compiles_and_moves(batch):
    weight = nm_matrix(128, 256, Pattern(2, 4), torch.bfloat16)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    layer = NMLinear(pack(weight[:, order.argsort()], Pattern(2, 4), order), torch.ones(128, dtype=torch.bfloat16))
    x = inputs(batch, 256, torch.bfloat16)
    layer = layer.to(CUDA)
    assert choose_backend(CUDA, torch.bfloat16, Pattern(2, 4), 128, 256, 1).name == "triton"
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), y)
        with using("reference"):
            torch.testing.assert_close(layer(x), y, atol=0.05, rtol=0.02)
        torch.testing.assert_close(dense_linear(x, unpack(layer.packed), layer.bias), y, atol=0.05, rtol=0.02)
