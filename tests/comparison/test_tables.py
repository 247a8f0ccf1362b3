"""The papers' tables: rows, columns and options as in the paper, on any model."""

from pathlib import Path

import pytest

from eggs_ptp.comparison.file import read_comparison, shipped_tables
from eggs_ptp.comparison.runner import compare
from eggs_ptp.comparison.table import text_rows

LAYER = ("table-2", "table-3", "table-4", "table-7", "table-8", "table-9")
ROW = ("table-5", "table-10", "table-10-search")

# Rows, columns with labels, and other columns; None: the column of the model.
SHAPES = {
    "table-2": (8, 3, [None]),
    "table-3": (4, 1, ["0", "0.5", "1", "2"]),
    "table-4": (9, 3, [None]),
    "table-5": (9, 2, [None]),
    "table-7": (6, 1, [None]),
    "table-8": (4, 1, [None]),
    "table-9": (6, 1, [None]),
    "table-10": (16, 7, ["perplexity"]),
    "table-10-search": (40, 6, ["perplexity"]),
}


def table(name, **changes):
    return read_comparison(Path(name), **changes)


def options(cell, slot):
    return cell.recipe.bound().steps[slot].options


def test_every_shipped_table_has_its_shape():
    assert set(shipped_tables()) == SHAPES.keys() == {*LAYER, *ROW}
    for name, (rows, heads, columns) in SHAPES.items():
        grid = table(name)
        assert (len(grid.rows), len(grid.heads)) == (rows, heads), name
        assert [column.label or None for column in grid.columns] == columns
        assert grid.undefined == {}


@pytest.mark.parametrize("name", SHAPES)
def test_every_cell_compares_weights_in_the_group_of_the_table(name):
    cells = list(table(name).cells())
    assert {options(cell, "select")["group"] for cell in cells} == {"layer" if name in LAYER else "row"}
    assert {options(cell, "select")["count"] for cell in cells} == {"original"}
    assert {cell.recipe.calibration.nsamples for cell in cells} == {128}
    assert {cell.recipe.calibration.sampling for cell in cells} == {"documents"}
    assert {cell.recipe.calibration.text for cell in cells} == {None}
    assert all(cell.recipe.bound().steps.keys() <= {"score", "select", "refine"} for cell in cells)


@pytest.mark.parametrize(("name", "trials"), [("table-2", 5), ("table-4", 3), ("table-9", 5)])
def test_trials_are_those_of_stochria(name, trials):
    seeds: dict[str, set[int]] = {}
    for cell in table(name).cells():
        seeds.setdefault(cell.recipe.method, set()).add(cell.recipe.seed)
    assert {method: len(of_method) for method, of_method in seeds.items()} == {
        method: trials if method == "stochria" else 1 for method in seeds
    }


@pytest.mark.parametrize(
    ("name", "alpha"), [("table-2", 1), ("table-4", 1), ("table-7", 1), ("table-8", 0.5), ("table-9", 1)]
)
def test_alpha_is_that_of_the_table(name, alpha):
    cells = [cell for cell in table(name).cells() if "alpha" in options(cell, "score")]
    assert cells
    assert {options(cell, "score")["alpha"] for cell in cells} == {alpha}


def test_table_2_and_4_have_the_patterns_and_ratios():
    for name, patterns in (("table-2", ["0.5", "2:4", "4:8"]), ("table-4", ["0.5", "0.6", "0.7"])):
        cells = list(table(name).cells())
        assert sorted({str(cell.recipe.pattern) for cell in cells}) == patterns
        for cell in cells:
            sparsity, method, sampling = cell.key[0]
            assert str(cell.recipe.pattern) == (sparsity if ":" in sparsity else f"0.{sparsity[0]}")
            assert cell.recipe.method == method.lower()
            assert (sampling == "10%") == (cell.recipe.method == "stochria")
    assert {options(cell, "score").get("beta", 0.1) for cell in cells} == {0.1}


def test_table_3_varies_alpha_by_column_and_the_sums_by_row():
    rows = {"Wanda": "wanda", "Col-Sum": "per_output", "Row-Sum": "per_input", "RIA": "ria"}
    for cell in table("table-3").cells():
        (row,), column = cell.key
        assert cell.recipe.bound().steps["score"].name == rows[row]
        assert options(cell, "score")["alpha"] == float(column)
        assert str(cell.recipe.pattern) == "0.5"


def test_table_5_has_the_best_options_of_table_10_and_the_scores_of_its_bases():
    recipes = {cell.key[0]: cell.recipe for cell in table("table-5").cells()}
    best = {cell.key[0]: cell.recipe for cell in table("table-10").cells() if cell.key[0][1] == "best"}
    expected = {
        "RIA": (2, True, 0, False, 1e-4),
        "Wanda": (2, False, 0, True, 1e-3),
        "Magnitude": (2, False, 0, True, 1e-3),
    }
    names = ("p", "relative_grow", "gamma1", "relative_prune", "gamma2")
    for (base, tuning), recipe in recipes.items():
        steps = recipe.bound().steps
        assert steps["score"].name == base.lower()
        assert str(recipe.pattern) == "0.6"
        assert steps["score"].options.get("alpha") == {"RIA": 0.5, "Wanda": 1.0}.get(base)
        if tuning == "-":
            assert "refine" not in steps
            continue
        refine = steps["refine"]
        assert refine.name == {"DSnoT": "dsnot", "R²-DSnoT": "r2_dsnot"}[tuning]
        assert (refine.options["max_cycles"], refine.options["threshold"], refine.options["power"]) == (50, 0.1, 1)
        if tuning == "R²-DSnoT":
            assert tuple(refine.options[name] for name in names) == expected[base]
            assert refine.options["alpha"] == 0.5
    for (base, *_), recipe in best.items():
        assert recipe.bound().steps["refine"].options == recipes[base, "R²-DSnoT"].bound().steps["refine"].options


def test_tables_7_8_and_9_vary_one_option():
    varied = {
        "table-7": ("p", {"1": 1, "2": 2, "3": 3, "4": 4, "0": 0, "∞": "inf"}),
        "table-8": ("reweight", {"S1 (default)": "s1", "S2": "s2", "S3": "s3", "S4": "s4"}),
        "table-9": ("beta", {label: float(label) for label in ("1", "0.9", "0.5", "0.1", "0.05", "0.01")}),
    }
    for name, (option, expected) in varied.items():
        cells = list(table(name, seeds=1).cells())
        assert {cell.key[0][0]: options(cell, "score")[option] for cell in cells} == expected
        assert list(expected) == [cell.key[0][0] for cell in cells]
        assert {str(cell.recipe.pattern) for cell in cells} == {"0.5"}
        assert len({repr({**options(cell, "score"), option: None}) for cell in cells}) == 1


def test_table_10_changes_the_options_that_its_labels_show():
    shown = {"1": 1, "2": 2, "∞": float("inf"), "✓": True, "×": False, "0": 0, "0.0001": 1e-4, "0.001": 1e-3}
    names = ("p", "relative_grow", "gamma1", "relative_prune", "gamma2")
    best: dict[str, dict[str, object]] = {}
    for cell in table("table-10").cells():
        base, setting, *labels = cell.key[0]
        labelled = {name: shown[label] for name, label in zip(names, labels, strict=True) if label}
        if setting == "best":
            best[base] = labelled
        assert {name: options(cell, "refine")[name] for name in names} == {**best[base], **labelled}
        assert cell.recipe.method == f"{base.lower()}+r2_dsnot"


def test_the_search_samples_20_of_the_108_combinations_for_each_base():
    cells = list(table("table-10-search").cells())
    assert {base: len({cell.key for cell in cells if cell.key[0][0] == base}) for base in ("RIA", "Wanda")} == {
        "RIA": 20,
        "Wanda": 20,
    }
    names = ("p", "relative_grow", "gamma1", "relative_prune", "gamma2")
    for name, label in zip(names, range(1, 6), strict=True):
        assert len({options(cell, "refine")[name] for cell in cells}) == (2 if "relative" in name else 3)
        for cell in cells:
            assert str(options(cell, "refine")[name]).lower() in (cell.key[0][label], cell.key[0][label] + ".0")


def test_a_user_text_is_packed_unless_overridden(text_file):
    grids = [
        table("table-3", calibration=text_file),
        read_comparison(Path("table-3"), ["calibration.sampling=documents"], calibration=text_file),
    ]
    assert [grid.recipe.calibration.sampling for grid in grids] == ["packed", "documents"]


@pytest.mark.parametrize(
    "name", [name if name in ("table-3", "table-5") else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]
)
def test_a_table_has_the_papers_shape_on_any_model(tiny, text_file, tmp_path, name):
    grid = table(name, seeds=1, calibration=text_file, nsamples=2, seqlen=32)
    comparison = compare(grid, str(tiny()), text=str(text_file), seqlen=32, max_windows=4, records=tmp_path)
    assert comparison.failed == {}
    rows, heads, columns = SHAPES[name]
    cells = text_rows(comparison)
    assert (len(cells), {len(row) for row in cells}) == (rows + 1, {heads + len(columns)})
    assert comparison.columns == tuple(column or tiny().name for column in columns)
    assert all("(" in cell for row in cells[1:] for cell in row[heads:])
    assert [tuple(row[:heads]) for row in cells[1:]] == [row.labels for row in grid.rows]
