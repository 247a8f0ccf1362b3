"""docs/accuracy.md says what its record has, and nothing of rows that are not there (yet)."""

import copy
import json
from pathlib import Path

import pytest

from eggs_ptp.method.catalogue import METHODS

ROOT = Path(__file__).parents[2]
MODEL = {"dense": 10.0, "targets": 100, "seqlen": 8, "calibration": "a.jsonl", "evaluation": "b.jsonl"}


@pytest.fixture
def page(monkeypatch, tmp_path):
    """The generator, for a record of one's own: excess by method, one number a seed; another tool's have a space."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import accuracy_page

    def page_of(which, excess, *, options=None, pattern="2:4", not_run=None):
        rows, settings = [], []
        for method, values in excess.items():
            steps = copy.deepcopy(METHODS[method].to_dict()["steps"]) if method in METHODS else {}
            for slot, changed in (options or {}).get(method, {}).items():
                steps[slot].update(changed)
            settings.append({"method": method, "steps": steps})
            tool = method.partition(" ")[0] if " " in method else "eggs-ptp"
            shared = {"model": "m", "pattern": pattern, "method": method, "tool": tool, "settings": len(settings) - 1}
            costs = {"seconds": 2.0, "cpu_seconds": 1.0, "faults": [], "environment": 0, "command": 0}
            rows += [
                {**shared, **costs, "seed": seed, "excess": value, "perplexity": 10 + value}
                for seed, value in enumerate(values)
            ]
        record = {"protocol": {"nsamples": 4}, "models": {"m": MODEL}, "environments": [{"torch": "0"}]}
        record |= {"commands": ["python it.py"], "settings": settings, "not_run": not_run or {}, "rows": rows}
        (tmp_path / "record.json").write_text(json.dumps(record))
        monkeypatch.setattr(accuracy_page, "RECORD", tmp_path / "record.json")
        return getattr(accuracy_page, which)()

    return page_of


def test_nothing_is_said_of_what_has_not_run(page):
    text = page("accuracy", {"wanda": [1.5, 1.6]}, not_run={"eggs-max": "no such method"})
    assert "| wanda | 11.55 | 0.07 | 1.550 |  |  | 2.0 | 1.0 | 2 |" in text
    assert "Not run: `eggs-max` (no such method)." in text
    assert "seed noise" not in text
    assert "ModelOpt" not in text
    assert page("shares", {"wanda": [1.5, 1.6]}).count("\n") == 2  # no SparseGPT, so no share


def test_shares_are_of_sparsegpt_with_the_same_seed(page):
    excess = {"sparsegpt": [1.0, 2.0], "wanda": [1.5, 2.0], "tool wanda": [1.5, 2.0], "eggs+": [0.4, 0.8]}
    text = page("accuracy", excess)
    assert "| wanda | 11.75 | 0.35 | 1.750 | 1.250 | 0.354 |" in text
    assert "| eggs+ | 10.60 | 0.28 | 0.600 | 0.400 | 0.000 |" in text
    assert page("shares", excess).splitlines()[2:] == [
        "| `wanda` | 1.25 |",
        "| tool wanda | 1.25 |",
        "| `sparsegpt` | 1.00 |",
        "| `eggs+` | 0.40 |",
    ]


@pytest.mark.parametrize(
    ("preset", "verdict", "counts"),
    [
        ([0.5, 0.6, 0.55], "better, by more than seed noise", "1 of 1 tables, by more than seed noise in 1"),
        ([0.5, 1.2, 0.6], "better, within seed noise", "1 of 1 tables, by more than seed noise in 0"),
        ([1.5, 1.6, 1.55], "worse, by more than seed noise", "0 of 1 tables, by more than seed noise in 0"),
        ([0.5], "better, one seed", "1 of 1 tables, by more than seed noise in 0"),
    ],
)
def test_a_preset_is_held_against_the_best_of_the_others(page, preset, verdict, counts):
    excess = {"sparsegpt": [1.3, 1.4, 1.3], "tool it": [1.0, 1.1, 1.05], "eggs+": preset, "eggs+ variant": [0.1] * 3}
    text = page("accuracy", excess)
    (line,) = (line for line in text.splitlines() if line.startswith("| m, 2:4 | eggs+ |"))
    assert "| tool it |" in line
    assert line.endswith(f"| {verdict} |")
    assert f"`eggs+` (no gradients) has less excess than every other in {counts}." in text
    assert "`eggs-max`" not in text


def test_rows_of_a_method_that_has_changed_are_marked_and_not_judged(page):
    excess = {"sparsegpt": [1.0, 1.0], "eggs+": [0.5, 0.5]}
    old = {"eggs+": {"correct": {"damping": 0.5}}}
    text = page("accuracy", excess, options=old)
    assert "| eggs+ † | 10.50 |" in text
    assert "† Made with other settings than the method has today" in text
    assert "less excess than" not in text
    assert "eggs+" not in page("shares", excess, options=old)


def test_findings_follow_from_the_rows(page):
    excess = {"sparsegpt": [1.0, 1.0], "llmcompressor sparsegpt": [1.001, 1.0], "eggs": [1.2, 1.2]}
    text = page("accuracy", excess)
    assert "over 2 pairs of runs their perplexities are at most 0.10% apart" in text
    assert "has 1.20 to 1.20 times SparseGPT's excess" in text
    assert "SparseGPT's excess: what" not in page("accuracy", {**excess, "eggs": [0.9, 0.9]})
    assert "shares of it say little" in page("accuracy", {"sparsegpt": [0.1], "wanda": [0.2]})
