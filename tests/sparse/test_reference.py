"""The reference product against float64, and against torch's dense product for infinities, NaN and denormals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.packing import nm_matrix

from eggs_ptp.core.pack import FLOAT_DTYPES, pack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse import reference
from eggs_ptp.sparse.reference import REFERENCE

PATTERNS = [Pattern(*pair) for pair in ((1, 4), (2, 4), (3, 4), (4, 8), (2, 5), (9, 20))]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 12),
    batch=st.integers(1, 5),
    dtype=st.sampled_from(FLOAT_DTYPES),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=20, deadline=None)
def test_products_are_those_of_float64_rounded(pattern, rows, groups, batch, dtype, seed):
    weight = nm_matrix(rows, groups * pattern.group, pattern, dtype, seed)
    x = torch.randn(batch, weight.shape[1], generator=torch.Generator().manual_seed(seed)).to(dtype)
    y = REFERENCE.linear(x, REFERENCE.prepare(pack(weight, pattern)))
    exact = x.double() @ weight.double().T
    # Rounding once to the type, after sums in float32 whose error grows with the absolute terms.
    terms = x.double().abs() @ weight.double().abs().T
    allowed = torch.finfo(dtype).eps * exact.abs() + 2e-6 * terms + torch.finfo(dtype).smallest_normal
    assert y.dtype == dtype
    assert bool(((y.double() - exact).abs() <= allowed).all())


def test_tiles_of_rows_make_up_the_product(monkeypatch):
    monkeypatch.setattr(reference, "_TILE", 64)
    weight = nm_matrix(11, 16, Pattern(2, 4), torch.float32)
    x = torch.randn(3, 16)
    packed = pack(weight, Pattern(2, 4))
    assert [start for start, _ in packed.tiles(64)] == [0, 4, 8]
    torch.testing.assert_close(REFERENCE.linear(x, packed), x @ weight.T)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_special_inputs_give_the_results_of_the_dense_product(dtype):
    """Infinity times a pruned weight is NaN, as in the dense product."""
    weight = nm_matrix(16, 32, Pattern(2, 4), dtype)
    tiny = torch.finfo(dtype).smallest_normal / 4
    x = torch.randn(6, 32).to(dtype)
    x[0, 3], x[1, 5], x[2, 7] = float("inf"), float("-inf"), float("nan")
    x[3] = tiny
    x[4] = -0.0
    x[5] = torch.finfo(dtype).max
    y = REFERENCE.linear(x, REFERENCE.prepare(pack(weight, Pattern(2, 4))))
    dense = torch.nn.functional.linear(x, weight)
    torch.testing.assert_close(y, dense, equal_nan=True)
    assert bool(y[:3].isnan().any(1).all())
    assert bool(y[3].count_nonzero())
    assert torch.equal(torch.signbit(y[4]), torch.signbit(dense[4]))


def test_special_weights_give_the_results_of_the_dense_product():
    weight = nm_matrix(8, 16, Pattern(2, 4))
    weight[0, weight[0].nonzero()[0]] = float("inf")
    weight[1, weight[1].nonzero()[0]] = float("nan")
    weight[2] *= 1e-40
    x = torch.randn(2, 16)
    y = REFERENCE.linear(x, REFERENCE.prepare(pack(weight, Pattern(2, 4))))
    torch.testing.assert_close(y, x @ weight.T, equal_nan=True, rtol=1e-6, atol=0)
    assert bool(y[:, :2].isfinite().logical_not().all())
