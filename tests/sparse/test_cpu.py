"""The CPU backend against float64, and against the dense product for infinities, NaN and denormals."""

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear as dense_linear

from eggs_ptp.core.pack import Packed, pack, quantise, unpack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse import cpu

TYPES = [torch.float32, torch.bfloat16, torch.float16]
EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
CPU = torch.device("cpu")

if cpu.unsupported_reason(CPU, torch.float32, Pattern(2, 4), 8, 8, 1) is not None:  # numba is optional, and so is x86
    pytest.skip(str(cpu.missing_requirement()), allow_module_level=True)


def pruned(rows: int, columns: int, pattern: str, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A random N:M weight."""
    keep, group = map(int, pattern.split(":"))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    ranks = torch.rand(rows, columns // group, group, generator=generator).argsort(-1)
    return weight.masked_fill((ranks >= keep).view(rows, columns), 0).to(dtype)


def inputs(batch: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, columns, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_close_to_float64(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """Within the error of summing in float32 in any order and rounding once."""
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    bound = size * weight.shape[1] * 2.0**-23 + exact.abs() * EPSILON[x.dtype] * 1.01 + 1e-30
    assert y.dtype == x.dtype
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= bound).all())


def multiplied(x: Tensor, weight: Tensor, pattern: str) -> Tensor:
    keep, group = map(int, pattern.split(":"))
    return cpu.linear(x, cpu.prepare(pack(weight, Pattern(keep, group))))


def int8(weight: Tensor, pattern: str) -> tuple[Packed, Tensor]:
    """A weight packed with int8 values, and the matrix that it is equal to, in float64."""
    keep, group = map(int, pattern.split(":"))
    packed = quantise(pack(weight, Pattern(keep, group)), "int8")
    assert packed.scales is not None
    return packed, unpack(replace(packed, scales=packed.scales.double()))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("batch", [1, 2, 4, 7, 16, 17, 130])
def test_every_batch_matches_float64(dtype: torch.dtype, batch: int) -> None:
    weight, x = pruned(40, 256, "2:4", dtype), inputs(batch, 256, dtype)
    assert_close_to_float64(multiplied(x, weight, "2:4"), x, weight)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("pattern", ["1:2", "2:4", "4:8"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (3, 24), (16, 40), (17, 1032), (35, 2056)])
def test_shapes_that_fill_no_block_match_float64(dtype: torch.dtype, pattern: str, rows: int, columns: int) -> None:
    columns += {"1:2": 2, "2:4": 4, "4:8": 0}[pattern]
    weight = pruned(rows, columns, pattern, dtype)
    for batch in (1, 3, 5, 129):
        x = inputs(batch, columns, dtype)
        assert_close_to_float64(multiplied(x, weight, pattern), x, weight)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("batch", [1, 2, 4, 7, 16, 17, 130])
def test_int8_matches_float64_for_every_batch(dtype: torch.dtype, batch: int) -> None:
    packed, exact = int8(pruned(40, 256, "2:4", dtype), "2:4")
    x = inputs(batch, 256, dtype)
    assert_close_to_float64(cpu.linear(x, cpu.prepare(packed)), x, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["1:2", "2:4", "4:8"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (3, 24), (17, 1032), (35, 2056)])
def test_int8_matches_float64_for_shapes_that_fill_no_block(
    dtype: torch.dtype, pattern: str, rows: int, columns: int
) -> None:
    columns += {"1:2": 2, "2:4": 4, "4:8": 0}[pattern]
    packed, exact = int8(pruned(rows, columns, pattern, dtype), pattern)
    for batch in (1, 3, 5, 129):
        x = inputs(batch, columns, dtype)
        assert_close_to_float64(cpu.linear(x, cpu.prepare(packed)), x, exact)


@pytest.fixture
def older_tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The instruction set of an older processor."""
    monkeypatch.setenv(cpu.TIER, request.param)
    cpu.tier.cache_clear()
    cpu.kernel.cache_clear()
    if request.param not in cpu.tiers():
        cpu.tier.cache_clear()
        pytest.skip(f"this processor has no {request.param}")
    yield
    cpu.tier.cache_clear()
    cpu.kernel.cache_clear()


@pytest.mark.parametrize("older_tier", ["avx2", "avx512", "avx512vbmi2"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_older_processors_match_float64(older_tier: None, dtype: torch.dtype) -> None:
    for pattern, columns in (("2:4", 1036), ("4:8", 1032)):
        weight = pruned(21, columns, pattern, dtype)
        for batch in (1, 4, 200):
            x = inputs(batch, columns, dtype)
            assert_close_to_float64(multiplied(x, weight, pattern), x, weight)


@pytest.mark.parametrize("older_tier", ["avx2", "avx512", "avx512vbmi2"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_older_processors_match_float64_with_int8(older_tier: None, dtype: torch.dtype) -> None:
    for pattern, columns in (("2:4", 1036), ("4:8", 1032)):
        packed, exact = int8(pruned(21, columns, pattern, dtype), pattern)
        for batch in (1, 4, 200):
            x = inputs(batch, columns, dtype)
            assert_close_to_float64(cpu.linear(x, cpu.prepare(packed)), x, exact)


@pytest.mark.parametrize("batch", [1, 5, 140])
def test_infinities_and_nan_times_int8_values_are_those_of_the_dense_product(batch: int) -> None:
    packed, exact = int8(pruned(64, 264, "2:4", torch.float32), "2:4")
    x = inputs(batch, 264, torch.float32)
    x[0, 10], x[-1, 263] = torch.inf, torch.nan
    dense, y = dense_linear(x, exact.float()), cpu.linear(x, cpu.prepare(packed))
    finite = dense.isfinite()
    torch.testing.assert_close(y.masked_fill(finite, 0), dense.masked_fill(finite, 0), equal_nan=True, rtol=0, atol=0)
    assert bool(y[finite].isfinite().all())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("batch", [1, 5, 140])
def test_infinities_and_nan_come_out_as_from_the_dense_product(dtype: torch.dtype, batch: int) -> None:
    weight, x = pruned(64, 264, "2:4", dtype), inputs(batch, 264, dtype)
    kept = weight.nonzero()
    for index, value in ((0, torch.inf), (40, -torch.inf), (900, torch.nan)):
        weight[tuple(kept[index])] = value
    x[0, 10], x[-1, 263] = torch.inf, torch.nan
    for case_x, case_weight in ((x, pruned(64, 264, "2:4", dtype)), (inputs(batch, 264, dtype), weight)):
        dense = dense_linear(case_x.float(), case_weight.float())
        y = multiplied(case_x, case_weight, "2:4")
        assert not bool(dense.isfinite().all())
        finite = dense.isfinite()
        torch.testing.assert_close(
            y.float().masked_fill(finite, 0), dense.masked_fill(finite, 0), equal_nan=True, rtol=0, atol=0
        )
        assert bool(y[finite].isfinite().all())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("batch", [1, 4])
def test_denormals_count(dtype: torch.dtype, batch: int) -> None:
    """Except for batches of bfloat16 on processors with an instruction for it, which flushes them, also in oneDNN."""
    tiny, huge = (6e-8, 3e4) if dtype == torch.float16 else (1e-39, 1e36)
    weight = pruned(64, 64, "4:8", torch.float32).ne(0).to(dtype) * tiny
    x = torch.full((batch, 64), huge, dtype=dtype)
    y = multiplied(x, weight, "4:8")
    if cpu.tier() == "avx512bf16" and dtype == torch.bfloat16 and batch > 1:
        assert not bool(y.any())
    else:
        assert bool((y != 0).all())
        torch.testing.assert_close(y.double(), x.double() @ weight.double().T, rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", TYPES)
def test_unpacking_keeps_every_bit(dtype: torch.dtype) -> None:
    weight = pruned(19, 1048, "4:8", dtype)
    kept = weight.nonzero()
    for index, value in enumerate((-0.0, torch.inf, torch.nan, 1e-7, -1e-40)):
        weight[tuple(kept[index])] = value
    packed = pack(weight, Pattern(4, 8))
    out = cpu.unpack(packed, torch.full_like(weight, 7))
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(out.view(integers), weight.view(integers))


def test_rows_of_a_larger_matrix_are_multiplied_without_a_copy() -> None:
    weight, x = pruned(64, 96, "2:4", torch.float32), inputs(2, 96, torch.float32)
    rows = pack(weight, Pattern(2, 4)).row_slice(5, 40)
    assert cpu.prepare(rows).packed.values.data_ptr() == rows.values.data_ptr()
    assert_close_to_float64(cpu.linear(x, cpu.prepare(rows)), x, weight[5:40])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 8, 140])
def test_nothing_is_read_beyond_the_tensors(dtype: torch.dtype, batch: int) -> None:
    """Values and bits end at the end of a page, and the next page is protected: reading it would crash."""
    weight, x = pruned(18, 1036, "2:4", dtype), inputs(batch, 1036, dtype)
    packed = pack(weight, Pattern(2, 4))
    packed_int8, exact = int8(weight, "2:4")
    mapped_memory = []

    def at_the_edge(tensor: Tensor) -> Tensor:
        page = mmap.PAGESIZE
        size = tensor.numel() * tensor.element_size()
        pages = -(-size // page)
        memory = mmap.mmap(-1, (pages + 1) * page)
        mapped_memory.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + pages * page), page, 0) == 0
        raw = torch.from_numpy(np.frombuffer(memory, np.uint8, size, pages * page - size))
        raw.copy_(tensor.view(-1).view(torch.uint8))
        return raw.view(tensor.dtype).view(tensor.shape)

    edge = Packed(at_the_edge(packed.values), at_the_edge(packed.bits), packed.pattern, packed.columns)
    assert_close_to_float64(cpu.linear(x, cpu.prepare(edge)), x, weight)
    edge = replace(packed_int8, values=at_the_edge(packed_int8.values), bits=at_the_edge(packed_int8.bits))
    assert_close_to_float64(cpu.linear(x, cpu.prepare(edge)), x, exact)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 5])
def test_results_do_not_depend_on_the_number_of_threads(threads: None, batch: int) -> None:
    weight, x = pruned(1040, 1024, "2:4", torch.bfloat16), inputs(batch, 1024, torch.bfloat16)
    packed_int8, exact = int8(weight, "2:4")
    for packed, dense in ((pack(weight, Pattern(2, 4)), weight), (packed_int8, exact)):
        state = cpu.prepare(packed)
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(cpu.linear(x, state))
        assert_close_to_float64(results[0], x, dense)
        assert all(torch.equal(result, results[0]) for result in results)


def test_many_python_threads_may_multiply_at_once(threads: None) -> None:
    torch.set_num_threads(2)
    weight = pruned(1040, 1024, "2:4", torch.float32)
    state = cpu.prepare(pack(weight, Pattern(2, 4)))
    xs = [inputs(3, 1024, torch.float32) * factor for factor in range(1, 9)]
    expected = [cpu.linear(x, state) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(lambda x: cpu.linear(x, state), xs), expected))


def test_a_kernel_is_compiled_once_and_then_read_from_disk() -> None:
    from eggs_ptp.sparse import cpu_kernel

    cpu_kernel.compiled("product", cpu.tier(), "float32", 1)
    assert cpu_kernel.compiled("product", cpu.tier(), "float32", 1).cache_hits == 1


@pytest.mark.parametrize(
    ("device", "dtype", "pattern", "reason"),
    [
        ("cuda", torch.float32, "2:4", "device cuda: supports the CPU only"),
        ("cpu", torch.float64, "2:4", "type torch.float64: supports float32, bfloat16, float16"),
        ("cpu", torch.float32, "1:4", "pattern 1:4: supports 1:2, 2:4 and 4:8"),
        ("cpu", torch.float32, "8:16", "pattern 8:16: supports 1:2, 2:4 and 4:8"),
    ],
)
def test_unsupported_products_are_refused_with_the_reason(
    device: str, dtype: torch.dtype, pattern: str, reason: str
) -> None:
    keep, group = map(int, pattern.split(":"))
    assert cpu.unsupported_reason(torch.device(device), dtype, Pattern(keep, group), 64, 64, 1) == reason


@pytest.fixture
def uncached() -> Iterator[None]:
    for cached in (cached_functions := (cpu.missing_requirement, cpu.tier)):
        cached.cache_clear()
    yield
    for cached in cached_functions:
        cached.cache_clear()


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda patch: patch.setitem(sys.modules, "numba", None), "numba is not installed; pip install numba"),
        (lambda patch: patch.setattr(cpu, "tiers", lambda: ()), "this processor has neither AVX2 nor AVX-512"),
        (lambda patch: patch.setenv(cpu.TIER, "neon"), "EGGS_CPU_TIER is neon; this processor has avx"),
        (lambda patch: patch.setattr("numba.config.CPU_NAME", "generic"), "numba is set to compile for another"),
    ],
)
def test_missing_requirements_are_named(
    change: Callable[[pytest.MonkeyPatch], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    assert str(cpu.unsupported_reason(CPU, torch.float32, Pattern(2, 4), 64, 64, 1)).startswith(reason)
