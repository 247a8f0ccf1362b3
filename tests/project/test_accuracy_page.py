"""docs/accuracy.md and README's table state what their record has, and refuse one whose presets are outdated."""

import copy
import json
from pathlib import Path

import pytest

from eggs_ptp.method.catalogue import METHODS

ROOT = Path(__file__).parents[2]
MODEL = {"dense": 10.0, "targets": 100, "seqlen": 8, "calibration": "a.jsonl", "evaluation": "b.jsonl"}
PRESETS = {"eggs": [1.2, 1.2], "eggs+": [0.5, 0.5], "eggs-max": [0.4, 0.4]}


@pytest.fixture
def generator(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools" / "docs")
    import accuracy_page

    return accuracy_page


@pytest.fixture
def build(generator, monkeypatch, tmp_path):
    """Build a page from a synthetic record.

    `excess` has one value per seed for each method. The presets are added unless `presets` says otherwise.
    """

    def build_page(page, excess, *, presets=PRESETS, options=None, names=None, not_run=None):
        rows = []
        settings = []
        for method, values in {**presets, **excess}.items():
            steps = copy.deepcopy(METHODS[method].to_dict()["steps"]) if method in METHODS else {}
            for slot, changed in (options or {}).get(method, {}).items():
                steps[slot].update(changed)
            text = json.dumps({"method": method, "steps": steps})
            for current, former in (names or {}).items():
                text = text.replace(f'"{current}"', f'"{former}"')
            settings.append(json.loads(text))
            tool = method.partition(" ")[0] if method.startswith("tool ") or "llmcompressor" in method else "eggs-ptp"
            for seed, value in enumerate(values):
                row = {"model": "m", "pattern": "2:4", "method": method, "seed": seed, "tool": tool}
                row |= {"excess": value, "perplexity": 10 + value, "seconds": 2.0, "cpu_seconds": 1.0, "faults": []}
                rows.append({**row, "settings": len(settings) - 1, "environment": 0, "command": 0})
        record = {
            "protocol": {"nsamples": 4},
            "models": {"m": MODEL},
            "environments": [{"torch": "0"}],
            "commands": ["python it.py"],
            "settings": settings,
            "not_run": not_run or {},
            "rows": rows,
        }
        (tmp_path / "accuracy.json").write_text(json.dumps(record))
        monkeypatch.setattr(generator, "RECORD", tmp_path / "accuracy.json")
        return getattr(generator, page)()

    return build_page


def test_methods_that_did_not_run_are_not_compared(build):
    text = build("accuracy", {"wanda": [1.5, 1.6]}, not_run={"modelopt": "not installed"})
    assert "| wanda | 11.55 | 0.07 | 1.550 |  |  | 2.0 | 1.0 | 2 |" in text
    assert "Not run: `modelopt` (not installed)." in text
    assert "ModelOpt" not in text
    assert build("shares", {"wanda": [1.5, 1.6]}).count("\n") == 2  # no SparseGPT, so no shares


def test_shares_are_of_sparsegpt_with_the_same_seed(build):
    excess = {"sparsegpt": [1.0, 2.0], "wanda": [1.5, 2.0], "tool wanda": [1.5, 2.0], "eggs+": [0.4, 0.8]}
    text = build("accuracy", excess)
    assert "| wanda | 11.75 | 0.35 | 1.750 | 1.250 | 0.354 |" in text
    assert "| eggs+ | 10.60 | 0.28 | 0.600 | 0.400 | 0.000 |" in text
    lines = build("shares", excess).splitlines()[2:]
    assert [line for line in lines if "eggs" not in line] == [
        "| `wanda` | 1.25 |",
        "| tool wanda | 1.25 |",
        "| `sparsegpt` | 1.00 |",
    ]
    assert "| `eggs+` | 0.40 |" in lines


@pytest.mark.parametrize(
    ("preset", "verdict", "counts"),
    [
        ([0.5, 0.6, 0.55], "better, by more than seed noise", "1 of 1 tables, by more than seed noise in 1"),
        ([0.5, 1.2, 0.6], "better, within seed noise", "1 of 1 tables, by more than seed noise in 0"),
        ([1.5, 1.6, 1.55], "worse, by more than seed noise", "0 of 1 tables, by more than seed noise in 0"),
        ([0.5], "better, one seed", "1 of 1 tables, by more than seed noise in 0"),
    ],
)
def test_a_preset_is_compared_with_the_best_other_method(build, preset, verdict, counts):
    excess = {"sparsegpt": [1.3, 1.4, 1.3], "tool it": [1.0, 1.1, 1.05], "eggs+": preset, "eggs+ variant": [0.1] * 3}
    text = build("accuracy", excess)
    (line,) = (line for line in text.splitlines() if line.startswith("| m, 2:4 | eggs+ |"))
    assert "| tool it |" in line
    assert line.endswith(f"| {verdict} |")
    assert f"`eggs+` (no gradients) has a lower excess than every other method in {counts}." in text


@pytest.mark.parametrize("page", ["accuracy", "shares"])
@pytest.mark.parametrize("method", PRESETS)
def test_a_record_without_rows_of_a_preset_is_refused(generator, build, page, method):
    presets = {name: values for name, values in PRESETS.items() if name != method}
    with pytest.raises(generator.OutdatedRecordError) as error:
        build(page, {"sparsegpt": [1.0, 1.0]}, presets=presets)
    message = str(error.value)
    assert f"expected current rows of {method} for model m at 2:4, found no rows" in message
    assert (
        "run python benchmarks/accuracy.py --model m a.jsonl b.jsonl --patterns 2:4 --seeds 0 1 "
        f"--methods {method} --record docs/results/accuracy.json" in message
    )


@pytest.mark.parametrize("page", ["accuracy", "shares"])
def test_a_record_with_outdated_rows_of_a_preset_is_refused(generator, build, page):
    options = {"eggs+": {"correct": {"damping": 0.5}}}
    with pytest.raises(generator.OutdatedRecordError, match=r"rows of eggs\+ for model m at 2:4, found rows made with"):
        build(page, {"sparsegpt": [1.0, 1.0]}, options=options)


@pytest.mark.parametrize("page", ["accuracy", "shares"])
def test_settings_under_former_names_are_current(build, page):
    assert "eggs" in build(page, {"sparsegpt": [1.0, 1.0]}, names={"allocate": "deal", "allocation": "dealing"})


def test_labels_show_the_current_names_of_settings(build):
    assert "| eggs permutation=gather |" in build("accuracy", {"eggs orders=gather": [1.0]})


def test_outdated_rows_of_other_methods_are_marked_and_not_compared(build):
    excess = {"sparsegpt": [1.0, 1.0], "ria": [1.5, 1.5]}
    options = {"ria": {"score": {"alpha": 0.9}}}
    text = build("accuracy", excess, options=options)
    assert "| ria † | 11.50 |" in text
    assert "† Made with settings that the method does not have today" in text
    assert "`ria`" not in build("shares", excess, options=options)


def test_findings_follow_from_the_rows(build):
    excess = {"sparsegpt": [1.0, 1.0], "llmcompressor sparsegpt": [1.001, 1.0]}
    text = build("accuracy", excess)
    assert "over 2 pairs of runs their perplexities differ by at most 0.10%" in text
    assert "has 1.20 to 1.20 times SparseGPT's excess" in text
    assert "times SparseGPT's excess: updating" not in build("accuracy", {**excess, "eggs": [0.9, 0.9]})
    assert "shares of it say little" in build("accuracy", {"sparsegpt": [0.1], "wanda": [0.2]})
