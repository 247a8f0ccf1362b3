"""The layout of torch's 2:4 tensors against torch's own conversion and float64, and when this backend is chosen."""

import pytest
import torch
from oracles.packing import nm_matrix
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from eggs_ptp.core.pack import pack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import BackendError
from eggs_ptp.sparse import backends, torch_core
from eggs_ptp.sparse.backends import choose_backend, using
from eggs_ptp.sparse.reference import REFERENCE

TWO_OF_FOUR = Pattern(2, 4)
CUDA = torch.device("cuda")
HALVES = [torch.bfloat16, torch.float16]
NOT_ALLOWED = (
    "cuSPARSELt keeps a copy of the matrix, 56 % of the dense weight; set EGGS_CUSPARSELT=1 if memory allows it"
)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (96, 192), (64, 1024)])
def test_the_layout_is_what_torch_makes_of_the_dense_matrix(rows, columns, dtype):
    weight = nm_matrix(rows, columns, TWO_OF_FOUR, dtype)
    packed = pack(weight, TWO_OF_FOUR)
    values, meta = sparse_semi_structured_from_dense_cutlass(weight)
    assert torch.equal(values, packed.values)
    assert torch.equal(meta, torch_core.cutlass_positions(packed))


@pytest.mark.parametrize("dtype", HALVES)
def test_groups_with_kept_zeros_come_back_and_products_are_those_of_float64(monkeypatch, dtype):
    monkeypatch.setattr(torch_core, "_library", lambda _: "CUTLASS")
    weight = nm_matrix(64, 128, TWO_OF_FOUR, dtype, zeros=0.3)
    packed = pack(weight, TWO_OF_FOUR)
    tensor = torch_core.prepare(packed)
    assert tensor.packed.data_ptr() == packed.values.data_ptr()  # shared, not copied
    assert tensor.meta.nbytes == packed.bits.nbytes
    assert torch.equal(tensor.to_dense(), weight)
    x = torch.randn(3, 128, dtype=torch.float64)
    dense = sparse_semi_structured_to_dense_cutlass(tensor.packed, tensor.meta).double()
    torch.testing.assert_close(x @ dense.T, x @ weight.double().T, rtol=0, atol=0)


@pytest.mark.parametrize("groups", [(0b0011, 0b0101), (0b1001, 0b0110), (0b1010, 0b1100)])
def test_positions_of_a_group_are_its_two_columns(groups):
    code = torch_core._codes()[groups[0] | groups[1] << 4]
    for group in groups:
        assert [code & 3, code >> 2 & 3] == [column for column in range(4) if group >> column & 1]
        code = code >> 4


@pytest.fixture
def gpu(monkeypatch):
    """`gpu((9, 0))`: torch reports a GPU of this compute capability."""

    def pretend(capability, *, cusparselt=True):
        torch_core._library.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: cusparselt)

    monkeypatch.delenv(torch_core.ALLOW_CUSPARSELT, raising=False)
    yield pretend
    torch_core._library.cache_clear()


def reason_for(device=CUDA, dtype=torch.bfloat16, pattern=TWO_OF_FOUR, rows=4096, columns=4096, batch=4096):
    return torch_core.unsupported_reason(device, dtype, pattern, rows, columns, batch)


def test_without_a_gpu_the_reason_says_so():
    assert reason_for(torch.device("cpu")) == "device cpu: supports NVIDIA GPUs only"
    if not torch.cuda.is_available():
        torch_core._library.cache_clear()
        assert reason_for() == "torch finds no GPU"


@pytest.mark.parametrize(
    ("product", "reason"),
    [
        ({}, None),
        ({"batch": 1280}, None),
        ({"batch": 1279}, "batch 1279: faster from 1280 on"),
        ({"dtype": torch.float32}, "type torch.float32: supports bfloat16 and float16"),
        ({"pattern": Pattern(4, 8)}, "pattern 4:8: supports 2:4"),
        ({"rows": 48}, "48 x 4096: supports multiples of 32 rows and 64 columns"),
        ({"columns": 4128}, "4096 x 4128: supports multiples of 32 rows and 64 columns"),
    ],
)
def test_on_ampere_it_computes_long_prompts_of_2_of_4(gpu, product, reason):
    gpu((8, 0))
    assert reason_for(**product) == reason


def test_on_hopper_its_memory_must_be_allowed(gpu, monkeypatch):
    gpu((9, 0))
    assert reason_for() == NOT_ALLOWED
    monkeypatch.setenv(torch_core.ALLOW_CUSPARSELT, "0")
    assert reason_for() == NOT_ALLOWED
    monkeypatch.setenv(torch_core.ALLOW_CUSPARSELT, "1")
    assert reason_for() is None
    assert reason_for(rows=48, columns=4112) is None
    assert reason_for(rows=40) == "40 x 4096: supports multiples of 16 rows and 16 columns"
    gpu((9, 0), cusparselt=False)
    assert reason_for() == "this torch has no cuSPARSELt, which compute capability 9.0 needs"
    gpu((7, 5))
    assert reason_for() == "compute capability 7.5: sparse tensor cores need 8.0"


def test_it_is_chosen_by_batch_and_can_be_forced(gpu, monkeypatch):
    monkeypatch.setattr(backends, "registered_backends", lambda: (torch_core.TORCH_CORE, REFERENCE))
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    gpu((8, 6))
    product = (CUDA, torch.float16, TWO_OF_FOUR, 4096, 4096)
    assert [choose_backend(*product, batch).name for batch in (1, 4096)] == ["reference", "torch"]
    with using("torch"), pytest.raises(BackendError, match=r"^backend torch: batch 1: faster from 1280 on; name"):
        choose_backend(*product, 1)
