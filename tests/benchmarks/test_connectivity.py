"""benchmarks/connectivity.py: its runs, and correlations over rows."""

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


def test_every_setting_is_a_method_and_can_be_read_from_its_label(connectivity):
    from accuracy import recipe_of

    arguments = argparse.Namespace(sweep=None, patterns=["2:4"], seeds=[0], blocks=[0, 5], kinds=["circulant", "best"])
    runs = connectivity.requested_runs(arguments, [])
    assert len(runs) == 6  # with B = 0 there are no kinds
    for _, _, label in runs:
        assert recipe_of(label).bound()
        match = connectivity.LABEL.match(label)
        assert (match["B"], match["kind"]) in {("0", "best"), ("5", "circulant"), ("5", "best")}
    assert connectivity.LABEL.match("eggs+ steps.update.B=2")["kind"] is None
    assert connectivity.LABEL.match("eggs+") is None


def test_a_sweep_gives_runs_and_perplexities_of_the_same_model_only(connectivity, tmp_path):
    model = argparse.Namespace(name="m", metadata={"weights_sha256": "1"})
    rows = [
        {"model": "m", "pattern": "2:4", "seed": 3, "method": "eggs orders=gather steps.select.B=2", "excess": 0.5},
        {"model": "m", "pattern": "2:4", "seed": 3, "method": "eggs", "excess": 0.4},
        {"model": "other", "pattern": "2:4", "seed": 3, "method": "eggs steps.select.B=2", "excess": 0.3},
    ]
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"models": {"m": {"weights_sha256": "1", "dense": 9.0}}, "rows": rows}))
    known_rows = connectivity.sweep_rows(path, model)
    assert [row["excess"] for row in known_rows] == [0.5]
    runs = connectivity.requested_runs(argparse.Namespace(sweep=path), known_rows)
    assert runs == [("2:4", 3, "eggs permutation=gather steps.select.B=2")]  # with today's name of the setting
    model.metadata["weights_sha256"] = "2"
    with pytest.raises(SystemExit, match="another weights_sha256"):
        connectivity.sweep_rows(path, model)


def test_correlations_resample_settings(connectivity, monkeypatch):
    """Metrics that depend on the output error alone have no partial correlation."""
    import correlation

    monkeypatch.setattr(correlation, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    rows = []
    for blocks in range(12):
        for seed in range(2):
            error = blocks + rng.normal() * 0.01
            graph = {"gini": blocks + rng.normal(), "dead_inputs": 0.0, "output_error": error}
            graph |= dict.fromkeys(("least_degree", "mean_least_degree", "least_share", "sigma2_over_edge"), -error)
            row = {"model": "m", "pattern": "2:4", "solved": False, "B": blocks, "kind": "best", "seed": seed}
            rows.append({**row, "excess": error, "graph": graph})
    correlations = {row["figure"]: row for row in connectivity.correlations(rows)}
    assert "dead_inputs" not in correlations  # constant
    assert correlations["output_error"]["rho"] == 1.0
    assert correlations["least_degree"]["rho"] == -1.0
    low, high = correlations["gini"]["interval"]
    assert 0.5 < low <= correlations["gini"]["rho"] <= high <= 1.0
    assert correlations["gini"]["runs"] == 24
