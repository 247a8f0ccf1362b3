"""What benchmarks/connectivity.py makes of its rows."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def connectivity(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import connectivity

    return connectivity


def test_every_setting_is_a_method_and_is_read_back_from_its_name(connectivity):
    from accuracy import recipe_of

    given = argparse.Namespace(sweep=None, patterns=["2:4"], seeds=[0], blocks=[0, 5], kinds=["circulant", "best"])
    asked = connectivity.asked_for(given, [])
    assert len(asked) == 6  # with B = 0 there are no kinds
    for _, _, label in asked:
        assert recipe_of(label).bound()
        named = connectivity.LABEL.match(label)
        assert (named["B"], named["kind"]) in {("0", "best"), ("5", "circulant"), ("5", "best")}
    assert connectivity.LABEL.match("eggs+ steps.update.B=2")["kind"] is None
    assert connectivity.LABEL.match("eggs+") is None


def test_a_sweep_gives_what_to_run_and_perplexities_of_the_same_model_only(connectivity, tmp_path):
    model = argparse.Namespace(name="m", facts={"weights_sha256": "1"})
    rows = [
        {"model": "m", "pattern": "2:4", "seed": 3, "method": "eggs steps.select.B=2", "excess": 0.5},
        {"model": "m", "pattern": "2:4", "seed": 3, "method": "eggs", "excess": 0.4},
        {"model": "other", "pattern": "2:4", "seed": 3, "method": "eggs steps.select.B=2", "excess": 0.3},
    ]
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"models": {"m": {"weights_sha256": "1", "dense": 9.0}}, "rows": rows}))
    known = connectivity.sweep_rows(path, model)
    assert [row["excess"] for row in known] == [0.5]
    given = argparse.Namespace(sweep=path)
    assert connectivity.asked_for(given, known) == [("2:4", 3, "eggs steps.select.B=2")]
    model.facts["weights_sha256"] = "2"
    with pytest.raises(SystemExit, match="another weights_sha256"):
        connectivity.sweep_rows(path, model)


def test_correlations_are_taken_setting_by_setting(connectivity, monkeypatch):
    """What follows the output error and nothing else has none left once that is held fixed."""
    import correlation

    monkeypatch.setattr(correlation, "RESAMPLES", 200)
    draw = np.random.default_rng(0)
    rows = []
    for blocks in range(12):
        for seed in range(2):
            error = blocks + draw.normal() * 0.01
            graph = {"gini": blocks + draw.normal(), "dead_inputs": 0.0, "output_error": error}
            graph |= dict.fromkeys(("least_degree", "mean_least_degree", "least_share", "sigma2_over_edge"), -error)
            row = {"model": "m", "pattern": "2:4", "solved": False, "B": blocks, "kind": "best", "seed": seed}
            rows.append({**row, "excess": error, "graph": graph})
    found = {one["figure"]: one for one in connectivity.correlations(rows)}
    assert "dead_inputs" not in found  # the same everywhere
    assert found["output_error"]["rho"] == 1.0
    assert found["least_degree"]["rho"] == -1.0
    low, high = found["gini"]["interval"]
    assert 0.5 < low <= found["gini"]["rho"] <= high <= 1.0
    assert found["gini"]["runs"] == 24
