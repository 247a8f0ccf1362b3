"""docs/findings/bounds.md states what its record has."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "tools" / "docs")
    import bounds_page

    def build_page(methods, correlations=(), below=0):
        rows = []
        for method, (solved, excess, error) in methods.items():
            figures = {"error": error, "least_unchanged": 0.04, "best_unchanged": 0.06, "over_unchanged": error / 0.04}
            figures |= {"least_updated": 0.02, "best_updated": 0.03, "over_updated": error / 0.02}
            figures |= {"matrices": 7, "below": below, "across_matrices": 0.8}
            role = {"error": error, "least": 0.025, "best": 0.03}
            rows.append(
                {"model": "m", "pattern": "2:4", "method": method, "solved": solved, "seed": 0, "excess": excess}
                | {"perplexity": 9 + excess, "figures": figures, "roles": {"up": role}, "environment": 0, "command": 0}
            )
        record = {"models": {"m": {"dense": 9.0}}, "rows": rows, "correlations": list(correlations)}
        record |= {"environments": [{"torch": "0"}], "commands": ["python it.py"], "protocol": {"looked_at": 32}}
        (tmp_path / "record.json").write_text(json.dumps(record))
        monkeypatch.setattr(bounds_page, "RECORD", tmp_path / "record.json")
        return bounds_page.bounds()

    return build_page


METHODS = {
    "wanda": (False, 1.0, 0.1), "ria": (False, 0.9, 0.08), "alps": (True, 0.5, 0.05), "eggs+": (True, 0.3, 0.06)
}  # fmt: skip


def test_what_is_left_to_gain_is_of_the_method_with_the_smallest_error(page):
    text = page(METHODS)
    assert "`ria` has the smallest error, 0.080. At most 0.040 of it is left to gain (50%" in text
    assert "no mask in its column order has less than 0.040), and 0.020 (25%) was found." in text
    assert "`alps` has the smallest error, 0.050. At most 0.030 of it is left to gain (60%" in text
    assert "| alps | solved for | 9.50 | 0.500 | 0.0500 | 0.0400 | 0.0600 | 1.25 | 0.0200 | 0.0300 | 2.50 |" in text
    assert text.index("| wanda |") < text.index("| alps |") < text.index("| eggs+ |")  # highest excess first


def test_pairs_that_error_and_excess_rank_differently_are_counted(page):
    text = page(METHODS)
    assert "over the methods the error ranges from 0.050 to 0.100 (2.0 times)" in text
    assert (
        "Of 6 pairs of methods, error and excess rank 1 differently; the largest difference is between `eggs+`" in text
    )
    assert "differently" not in page({**METHODS, "eggs+": (True, 0.3, 0.045)})


def test_methods_with_a_smaller_error_than_any_mask_alone_are_named(page):
    assert "than any mask can have" not in page(METHODS)
    text = page({**METHODS, "alps": (True, 0.5, 0.035)})
    assert "in the mean over the matrices: `alps` (0.035, against at least 0.040)." in text


def test_violated_bounds_and_correlations_are_stated(page):
    correlation = {"model": "m", "pattern": "2:4", "figure": "over_updated", "runs": 4}
    of_all = {**correlation, "group": "all methods", "rho": 0.9, "interval": [0.5, 1.0]}
    of_some = {**correlation, "group": "without correction for drift", "rho": 0.8, "interval": [-0.1, 1.0]}
    text = page(METHODS, [of_all, of_some], below=1)
    assert "Of 28 pruned matrices, 4 had an error below the bound." in text
    assert "rho +0.90 [+0.50, +1.00] (m); without correction for drift: rho +0.80 [-0.10, +1.00] (m)." in text
    assert "| m | all methods | error / least, W solved | +0.90 [+0.50, +1.00] | 4 |" in text
    assert "Of 28 pruned matrices, none had an error below the bound." in page(METHODS)


def test_errors_by_matrix_are_of_the_methods_with_the_lowest_excess(page):
    text = page(METHODS)
    assert "| m | ria | up | 0.0800 | 0.0250 | 0.0300 | 3.20 |" in text
    assert "| m | eggs+ | up | 0.0600 | 0.0250 | 0.0300 | 2.40 |" in text
    assert "| m | alps | up |" not in text
