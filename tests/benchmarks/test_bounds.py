"""benchmarks/bounds.py: metrics of diagnoses, and correlations over rows."""

from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bounds(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import bounds
    import correlation

    monkeypatch.setattr(correlation, "RESAMPLES", 50)
    return bounds


def matrix(name, error, least_unchanged, least_updated):
    error_bounds = {"least_unchanged": least_unchanged, "best_unchanged": 2 * least_unchanged}
    error_bounds |= {"least_updated": least_updated, "best_updated": 3 * least_updated}
    return SimpleNamespace(name=name, calibrated={"output_error": error}, bounds=error_bounds)


MATRICES = [
    matrix("model.0.up", 0.1, 0.05, 0.02),
    matrix("model.0.down", 0.2, 0.1, 0.05),
    matrix("model.1.up", 0.3, 0.15, 0.11),
]


def test_every_method_exists(bounds):
    from accuracy import recipe_of

    assert all(recipe_of(label).bound() for label in bounds.METHODS)


def test_ratios_are_of_means_and_violated_bounds_are_counted(bounds):
    metrics = bounds.metrics_of(MATRICES, solved=False)
    assert metrics["error"] == pytest.approx(0.2)
    assert metrics["best_updated"] == pytest.approx(0.18)
    assert metrics["over_unchanged"] == pytest.approx(2.0)
    assert metrics["over_updated"] == pytest.approx(0.2 / 0.06, abs=1e-6)
    assert metrics["across_matrices"] == 1.0
    assert (metrics["matrices"], metrics["below"]) == (3, 0)
    # with updated weights the error may be below the bound for masks alone
    with_low_error = [*MATRICES, matrix("model.1.down", 0.1, 0.12, 0.09)]
    assert bounds.metrics_of(with_low_error, solved=True)["below"] == 0
    assert bounds.metrics_of(with_low_error, solved=False)["below"] == 1


def test_roles_have_the_bound_that_applies_to_the_method(bounds):
    assert bounds.roles(MATRICES, solved=False) == {
        "up": {"error": 0.2, "least": 0.1, "best": 0.2},
        "down": {"error": 0.2, "least": 0.1, "best": 0.2},
    }
    assert bounds.roles(MATRICES, solved=True)["up"] == {"error": 0.2, "least": 0.065, "best": 0.195}


def test_correlations_are_over_groups_of_methods(bounds):
    """Within each treatment of the weights the excess falls as the error grows; over both it rises."""
    rows = []
    for solved in (False, True):
        for index in range(6):
            error = (1.0 if solved else 10.0) + index
            metrics = {"error": error, "least_unchanged": 0.5, "over_unchanged": error / 0.5}
            metrics |= {"least_updated": 0.1 + 0.01 * index, "over_updated": error / (0.1 + 0.01 * index)}
            row = {"model": "m", "pattern": "2:4", "method": f"{solved} {index}", "solved": solved}
            settings = int(solved and index == 0)
            rows.append({**row, "excess": (0.0 if solved else 20.0) - index, "figures": metrics, "settings": settings})
    data = {"rows": rows, "settings": [{"steps": {"score": {}}}, {"steps": {"score": {}, "correct": {}}}]}
    correlations = {(row["group"], row["figure"]): row for row in bounds.correlations(data)}
    assert correlations["all methods", "error"]["rho"] > 0
    assert correlations["kept weights as they were", "error"]["rho"] == -1.0
    assert correlations["kept weights solved for", "error"]["rho"] == -1.0
    assert ("all methods", "least_unchanged") not in correlations  # constant
    runs = {group: correlations[group, "error"]["runs"] for group in bounds.GROUPS}
    assert list(runs.values()) == [12, 11, 6, 6]
