"""Standard errors and intervals, against formulas, scipy and simulation."""

import math
import statistics

import pytest
import torch
from scipy import stats

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.estimate import difference, estimate


def test_windows_with_equal_counts_have_the_error_of_a_mean():
    values = [1.5, 2.0, 4.5, 3.0]
    got = estimate([7 * value for value in values], [7] * 4)
    assert got.value == pytest.approx(2.75)
    assert got.standard_error == pytest.approx(statistics.stdev(values) / 2)


def test_windows_weigh_by_their_counts():
    sums, counts = [10.0, 1.0, 7.0], [4, 1, 2]
    ratio = 18 / 7
    spread = sum((total - ratio * count) ** 2 for total, count in zip(sums, counts, strict=True)) * 3 / 2
    got = estimate(sums, counts)
    assert (got.value, got.standard_error) == (pytest.approx(ratio), pytest.approx(math.sqrt(spread) / 7))


def test_a_single_window_has_no_error():
    assert estimate([3.0], [2]).to_dict() == {"value": 1.5, "standard_error": None}
    got = difference([3.0], [1.0], [2])
    assert (got.value, got.low, got.high, got.exp().high) == (1.0, None, None, None)


def test_a_difference_is_the_paired_t_test():
    first, second = [1.0, 4.0, 3.5, 2.0, 9.0], [0.5, 4.5, 1.0, 1.5, 6.0]
    got = difference(first, second, [1] * 5)
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert got.value == pytest.approx(1.2)
    assert (got.low, got.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert got.value / got.standard_error == pytest.approx(expected.statistic)
    assert got.pairs == 5


def test_pairs_with_a_constant_difference_have_no_error():
    first = [float(i) for i in range(10)]
    got = difference([value + 0.1 for value in first], first, [1] * 10)
    assert (got.low, got.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert got.standard_error < 1e-12 < estimate(first, [1] * 10).standard_error


def test_the_interval_covers_the_true_mean_as_often_as_it_claims():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 12, generator=generator, dtype=torch.float64) + 0.3
    covered = sum(
        got.low <= 0.3 <= got.high for got in (difference(row, [0.0] * 12, [1] * 12) for row in noise.tolist())
    )
    assert 0.935 < covered / 2000 < 0.965


def test_a_ratio_is_the_exponential_of_a_difference():
    got = difference([1.0, 2.0, 4.0], [0.5, 1.0, 2.0], [1, 1, 1])
    ratio = got.exp()
    assert ratio.value == pytest.approx(math.exp(got.value))
    assert (ratio.low, ratio.high) == (pytest.approx(math.exp(got.low)), pytest.approx(math.exp(got.high)))


@pytest.mark.parametrize(("first", "second"), [([1.0], [1.0, 2.0]), ([], [])])
def test_measurements_that_do_not_pair_are_refused(first, second):
    with pytest.raises(CalibrationError, match="cannot be paired"):
        difference(first, second, [1] * len(first))
