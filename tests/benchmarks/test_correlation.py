"""What benchmarks/correlation.py makes of figures and excesses."""

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


def test_nothing_is_said_of_few_settings_or_of_what_never_changes(correlation):
    excess = [1.0, 2.0, 3.0, 4.0, 6.0, 5.0]
    figures = {"same": [1.0] * 6, "own": excess, "other": [2.0, 1.0, 3.0, 4.0, 5.0, 6.0]}
    found = {one["figure"]: one for one in correlation.correlated(figures, list("abcdef"), excess, figures["own"])}
    assert found.keys() == {"own", "other"}
    assert found["own"]["rho"] == 1.0
    assert "partial" not in found["own"]  # it is what would be held fixed
    low, high = found["other"]["interval"]
    assert low < found["other"]["rho"] <= high
    assert "other: rho +0.89 [" in correlation.said(found["other"])
    assert correlation.correlated(figures, list("aabbcd"), excess, figures["own"]) == []  # 6 runs, but 4 settings
    assert correlation.correlated({"own": []}, [], []) == []
    assert not any("partial" in one for one in correlation.correlated(figures, list("abcdef"), excess))


def test_runs_of_a_setting_are_drawn_together(correlation):
    """Seeds that agree add no certainty: the interval is that of one run a setting."""
    x, y = np.arange(8.0), np.array([0.0, 3.0, 1.0, 2.0, 5.0, 7.0, 4.0, 6.0])
    once = correlation.resampled(np.arange(8), x, y)
    assert correlation.resampled(np.repeat(np.arange(8), 3), np.repeat(x, 3), np.repeat(y, 3)) == once
