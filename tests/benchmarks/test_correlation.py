"""benchmarks/correlation.py: rank correlations and their intervals."""

import math
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def correlation(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import correlation

    monkeypatch.setattr(correlation, "RESAMPLES", 200)
    return correlation


def test_rank_correlations(correlation):
    x, y = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([1.0, 4.0, 9.0, 100.0, 30.0])
    assert correlation.rank_correlation(x, y) == pytest.approx(0.9)
    assert correlation.rank_correlation(x, -(x**3)) == pytest.approx(-1.0)
    assert math.isnan(correlation.rank_correlation(x, np.ones(5)))
    z = np.array([2.0, 1.0, 4.0, 3.0, 5.0])
    first, second, third = 0.9, 0.8, correlation.rank_correlation(y, z)
    expected = (first - second * third) / math.sqrt((1 - second**2) * (1 - third**2))
    assert correlation.rank_correlation(x, y, z) == pytest.approx(expected)
    assert math.isnan(correlation.rank_correlation(x, y, y))


def test_few_settings_and_constant_metrics_have_no_correlation(correlation):
    excess = [1.0, 2.0, 3.0, 4.0, 6.0, 5.0]
    metrics = {"constant": [1.0] * 6, "error": excess, "other": [2.0, 1.0, 3.0, 4.0, 5.0, 6.0]}
    rows = correlation.correlated(metrics, list("abcdef"), excess, metrics["error"])
    by_metric = {row["figure"]: row for row in rows}
    assert by_metric.keys() == {"error", "other"}
    assert by_metric["error"]["rho"] == 1.0
    assert "partial" not in by_metric["error"]  # the variable that is held fixed
    low, high = by_metric["other"]["interval"]
    assert low < by_metric["other"]["rho"] <= high
    assert "other: rho +0.89 [" in correlation.line_of(by_metric["other"])
    assert correlation.correlated(metrics, list("aabbcd"), excess, metrics["error"]) == []  # 6 runs, but 4 settings
    assert correlation.correlated({"error": []}, [], []) == []
    assert not any("partial" in row for row in correlation.correlated(metrics, list("abcdef"), excess))


def test_runs_of_a_setting_are_resampled_together(correlation):
    """Seeds with equal results add no certainty: the interval is that of one run per setting."""
    x, y = np.arange(8.0), np.array([0.0, 3.0, 1.0, 2.0, 5.0, 7.0, 4.0, 6.0])
    once = correlation.resampled(np.arange(8), x, y)
    assert correlation.resampled(np.repeat(np.arange(8), 3), np.repeat(x, 3), np.repeat(y, 3)) == once
