"""What benchmarks/bounds.py makes of diagnoses and rows."""

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
    found = {"least_unchanged": least_unchanged, "best_unchanged": 2 * least_unchanged}
    found |= {"least_updated": least_updated, "best_updated": 3 * least_updated}
    return SimpleNamespace(name=name, calibrated={"output_error": error}, bounds=found)


MATRICES = [
    matrix("model.0.up", 0.1, 0.05, 0.02),
    matrix("model.0.down", 0.2, 0.1, 0.05),
    matrix("model.1.up", 0.3, 0.15, 0.11),
]


def test_every_method_is_one(bounds):
    from accuracy import recipe_of

    assert all(recipe_of(label).bound() for label in bounds.METHODS)


def test_ratios_are_of_means_and_a_bound_that_is_broken_is_counted(bounds):
    found = bounds.figures(MATRICES, solved=False)
    assert found["error"] == pytest.approx(0.2)
    assert found["best_updated"] == pytest.approx(0.18)
    assert found["over_unchanged"] == pytest.approx(2.0)
    assert found["over_updated"] == pytest.approx(0.2 / 0.06, abs=1e-6)
    assert found["across_matrices"] == 1.0
    assert (found["matrices"], found["below"]) == (3, 0)
    # solving may go below what masks alone cannot, and that is no fault
    low = [*MATRICES, matrix("model.1.down", 0.1, 0.12, 0.09)]
    assert bounds.figures(low, solved=True)["below"] == 0
    assert bounds.figures(low, solved=False)["below"] == 1


def test_roles_take_the_bound_of_what_the_method_may_do(bounds):
    assert bounds.roles(MATRICES, solved=False) == {
        "up": {"error": 0.2, "least": 0.1, "best": 0.2},
        "down": {"error": 0.2, "least": 0.1, "best": 0.2},
    }
    assert bounds.roles(MATRICES, solved=True)["up"] == {"error": 0.2, "least": 0.065, "best": 0.195}


def test_correlations_are_over_groups_of_methods(bounds):
    """Within each treatment the excess falls as the error grows, over both it does the opposite."""
    rows = []
    for solved in (False, True):
        for place in range(6):
            error = (1.0 if solved else 10.0) + place
            figures = {"error": error, "least_unchanged": 0.5, "over_unchanged": error / 0.5}
            figures |= {"least_updated": 0.1 + 0.01 * place, "over_updated": error / (0.1 + 0.01 * place)}
            row = {"model": "m", "pattern": "2:4", "method": f"{solved} {place}", "solved": solved}
            corrects = int(solved and place == 0)
            rows.append({**row, "excess": (0.0 if solved else 20.0) - place, "figures": figures, "settings": corrects})
    data = {"rows": rows, "settings": [{"steps": {"score": {}}}, {"steps": {"score": {}, "correct": {}}}]}
    found = {(one["group"], one["figure"]): one for one in bounds.correlations(data)}
    assert found["all methods", "error"]["rho"] > 0
    assert found["kept weights as they were", "error"]["rho"] == -1.0
    assert found["kept weights solved for", "error"]["rho"] == -1.0
    assert ("all methods", "least_unchanged") not in found  # the same everywhere
    runs = {group: found[group, "error"]["runs"] for group in bounds.GROUPS}
    assert list(runs.values()) == [12, 11, 6, 6]
