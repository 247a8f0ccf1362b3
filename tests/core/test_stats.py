import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import scores as oracle
from torch.testing import assert_close

from eggs_ptp.core.stats import STATISTICS, Moments
from eggs_ptp.errors import CalibrationError, NumericsError

ALL = frozenset(STATISTICS)
PER_TOKEN = ALL - {"input_var_within"}  # that one depends on where windows end
WIDTH = 6
DENSE = torch.tensor([[2.0, 0.0, 0.0, -1.0, 0.0, 3.0], [0.0, 1.0, 5.0, 0.0, 0.0, 0.0]])  # (out, in)


def activation(tokens: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, WIDTH, generator=generator) * torch.arange(1, WIDTH + 1) + 3.0


def moments_of(*batches: torch.Tensor, statistics: frozenset[str] = PER_TOKEN) -> Moments:
    moments = Moments(WIDTH, statistics, dense_width=len(DENSE))
    for batch in batches:
        moments.add(batch, batch.float().square() @ DENSE.T)
    return moments


def test_every_statistic_follows_its_formula():
    windows = activation(48).view(4, 12, WIDTH)
    moments = moments_of(windows, statistics=ALL)
    x = windows.double().view(48, WIDTH)
    norm = torch.tensor(oracle.input_norm(x.tolist()))
    expected = {
        "input_norm": norm,
        "output_norm": norm,
        "input_mean": x.mean(0).float(),
        "input_var": x.var(0, correction=0).float(),
        "input_var_within": windows.double().var(1, correction=0).mean(0).float(),
        "gram": (x.T @ x / 48).float(),
        "cross": ((x.square() @ DENSE.T.double()).T @ x / 48).float(),
        "tokens": torch.tensor(48.0),
    }
    assert moments.tokens == 48
    assert expected.keys() == ALL
    for statistic, value in expected.items():
        assert_close(moments.read(statistic, "m"), value)


@given(st.lists(st.integers(0, 40), max_size=4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_batch_split_does_not_matter(cuts, seed):
    x = activation(40, seed)
    at_once = moments_of(x)
    split = moments_of(*x.tensor_split(sorted(cuts)))
    assert split.tokens == 40
    for statistic in PER_TOKEN:
        tolerance = 1e-5 if statistic in ("gram", "cross") else 1e-7
        expected = at_once.read(statistic, "m")
        assert_close(split.read(statistic, "m"), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_shape_and_merging_do_not_matter():
    x = activation(24)
    merged = moments_of(x[:10])
    merged.merge(moments_of(x[10:]))
    for moments in (merged, moments_of(x.view(2, 3, 4, WIDTH))):
        assert moments.tokens == 24
        for statistic in PER_TOKEN:
            assert_close(moments.read(statistic, "m"), moments_of(x).read(statistic, "m"))


def test_the_variance_within_windows_does_not_depend_on_how_windows_are_batched():
    windows = activation(24).view(4, 6, WIDTH)
    within = frozenset({"input_var_within"})
    at_once = moments_of(windows, statistics=within).read("input_var_within", "m")
    split = moments_of(windows[0], windows[1:], statistics=within).read("input_var_within", "m")
    assert_close(split, at_once)
    assert (at_once < moments_of(windows, statistics=ALL).read("input_var", "m")).all()


def test_half_precision_is_squared_in_float32():
    x = torch.full((4, WIDTH), 300.0, dtype=torch.float16)  # 300^2 is more than float16 holds
    assert_close(moments_of(x).read("input_norm", "m"), torch.full((WIDTH,), 300.0))


def test_sums_that_no_statistic_needs_are_not_collected():
    assert set(moments_of(statistics=frozenset({"input_norm"})).sums) == {"square"}
    assert moments_of(statistics=frozenset()).sums == {}


def test_reading_without_a_token_is_refused_by_name():
    with pytest.raises(CalibrationError, match=r"experts\.7"):
        moments_of().read("input_norm", "experts.7")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_with_name_and_count(bad):
    x = activation(5)
    x[2, 1] = x[4, 3] = bad
    with pytest.raises(NumericsError, match=r"layers\.0: 2 of 6"):
        moments_of(x).read("input_norm", "layers.0")
