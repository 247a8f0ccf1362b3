"""docs/findings/connectivity.md states what its record has."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "tools" / "docs")
    import connectivity_page

    def build_page(excess, correlations=()):
        graph = dict.fromkeys(connectivity_page.METRICS, 1.0) | {"dead_inputs": 0}
        rows = [
            {
                "model": "m", "pattern": "2:4", "solved": False, "seed": seed, "B": blocks, "kind": kind,
                "excess": value, "perplexity": 10 + value, "graph": graph, "environment": 0, "command": 0,
            }
            for (blocks, kind), values in excess.items()
            for seed, value in enumerate(values)
        ]  # fmt: skip
        record = {"models": {"m": {"dense": 9.0}}, "rows": rows, "correlations": list(correlations)}
        record |= {"environments": [{"torch": "0"}], "commands": ["python it.py"]}
        (tmp_path / "record.json").write_text(json.dumps(record))
        monkeypatch.setattr(connectivity_page, "RECORD", tmp_path / "record.json")
        return connectivity_page.connectivity()

    return build_page


def test_the_best_setting_is_compared_with_no_blocks_seed_by_seed(page):
    text = page(
        {(0, "best"): [0.5, 0.7], (1, "best"): [0.4, 0.7], (9, "best"): [2.0, 2.2], (9, "circulant"): [3.0, 3.2]}
    )
    assert "excess is 0.600; the best of the 3 settings" in text
    assert "is B = 1 best, -0.050 ± 0.071 over 2 seeds; with B = 9 the best kind has +1.500." in text
    assert "no input is dead" in text
    assert "| 0 | - | 10.60 | 0.600 | 0.141 |" in text
    assert "(one seed)" in page({(0, "best"): [0.5], (1, "best"): [0.4]})


def test_correlations_with_intervals_that_exclude_zero_are_counted(page):
    group = {"model": "m", "pattern": "2:4", "solved": False, "figure": "least_share", "runs": 8}
    clear = {**group, "rho": 0.9, "interval": [0.8, 1.0], "partial": -0.5, "partial_interval": [-0.7, -0.1]}
    unclear = {**group, "rho": 0.2, "interval": [-0.1, 0.5], "partial": 0.1, "partial_interval": [-0.1, 0.3]}
    text = page({(0, "best"): [0.5], (1, "best"): [0.4]}, [clear, unclear])
    assert (
        "rho +0.20 to +0.90; with the output error held fixed -0.50 to +0.10, clearly below 0 (helps) in 1 and" in text
    )
    assert "clearly above 0 (harms) in 0 of 2 groups" in text
    assert "| +0.90 [+0.80, +1.00] | -0.50 [-0.70, -0.10] | 8 |" in text
