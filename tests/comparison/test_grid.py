"""The runs of a comparison."""

import pytest

from eggs_ptp.comparison.grid import Column, ComparisonGrid, Row, merge_tables
from eggs_ptp.errors import RecipeError
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe


def rows_of(*methods):
    return tuple(Row((method,), {"method": method}) for method in methods)


def columns_of(*patterns):
    return tuple(Column(pattern, {"pattern": pattern}) for pattern in patterns)


def runs(grid):
    return [(*cell.key[0], cell.key[1], cell.recipe.seed) for cell in grid.cells()]


def test_rows_times_columns_times_seeds_and_all_cells_of_the_first_seed_come_first():
    grid = ComparisonGrid(Recipe(), rows_of("wanda", "ria"), columns_of("0.5", "2:4"), 2)
    assert runs(grid) == [
        (method, pattern, seed) for seed in (0, 1) for method in ("wanda", "ria") for pattern in ("0.5", "2:4")
    ]
    assert [(cell.recipe.method, str(cell.recipe.pattern)) for cell in grid.cells()][:2] == [
        ("wanda", "0.5"),
        ("wanda", "2:4"),
    ]


def test_the_first_seed_is_that_of_the_recipe():
    assert runs(ComparisonGrid(Recipe(seed=7), rows_of("wanda"), columns_of("0.5"), 2)) == [
        ("wanda", "0.5", 7),
        ("wanda", "0.5", 8),
    ]


def test_a_row_may_have_its_own_number_of_seeds():
    rows = (Row(("a",), {"method": "wanda"}, 3), Row(("b",), {"method": "ria"}))
    assert [run[0] for run in runs(ComparisonGrid(Recipe(), rows, columns_of("0.5"), 1))] == ["a", "b", "a", "a"]


@pytest.mark.parametrize(
    ("method", "text", "seeds"),
    [
        ("magnitude", None, 1),  # the weights alone
        ("wanda", None, 3),  # calibration windows are drawn
        ("wanda", "windows.npy", 1),  # the windows are fixed
        ("stochria", "windows.npy", 3),  # sums are sampled
    ],
)
def test_a_method_that_does_not_depend_on_the_seed_has_one_run(method, text, seeds):
    recipe = Recipe(calibration=CalibrationSpec(text=text))
    assert len(runs(ComparisonGrid(recipe, rows_of(method), columns_of("0.5"), 3))) == seeds


def test_rules_for_single_matrices_count_too():
    rule = {"match": "*.k_proj", "method": "wanda"}
    row = Row(("magnitude",), {"method": "magnitude", "targets": [rule]})
    assert len(runs(ComparisonGrid(Recipe(), (row,), columns_of("0.5"), 3))) == 3
    with_eggs = Row(("magnitude",), {"method": "magnitude", "targets": [{"match": "*.k_proj", "method": "eggs"}]})
    assert ComparisonGrid(Recipe(), (with_eggs, *rows_of("ria")), columns_of("0.5")).undefined.keys() == {
        (("magnitude",), "0.5")
    }


def test_undefined_cells_are_left_out_with_the_reason():
    grid = ComparisonGrid(Recipe(), rows_of("eggs", "ria"), columns_of("0.5", "2:4"), 1)
    assert runs(grid) == [("eggs", "2:4", 0), ("ria", "0.5", 0), ("ria", "2:4", 0)]
    (reason,) = grid.undefined.values()
    assert reason.startswith("eggs at 0.5: ")
    assert reason.endswith("needs an N:M pattern such as 2:4, not 0.5")


def test_changes_of_row_and_column_are_merged_into_the_recipe():
    recipe = Recipe(method="ria", steps={"select": {"group": "row"}}, calibration=CalibrationSpec(nsamples=4))
    row = Row(("lp",), {"steps": {"score": {"name": "lp", "alpha": 1}}, "calibration": {"seqlen": 8}})
    column = Column("p = 2", {"steps": {"score": {"p": 2}}, "pattern": 0.3})
    (cell,) = ComparisonGrid(recipe, (row,), (column,), 1).cells()
    assert cell.recipe.steps == {"select": {"group": "row"}, "score": {"name": "lp", "alpha": 1, "p": 2}}
    assert (cell.recipe.calibration.nsamples, cell.recipe.calibration.seqlen) == (4, 8)
    assert (str(cell.recipe.pattern), cell.recipe.method) == ("0.3", "ria")


def test_a_step_with_another_name_has_no_options_of_the_one_it_replaces():
    base = {"score": {"name": "lp", "p": 2}, "select": {"group": "row"}}
    assert merge_tables(base, {"score": {"name": "ria"}}) == {"score": {"name": "ria"}, "select": {"group": "row"}}
    assert merge_tables(base, {"score": {"name": "lp", "alpha": 1}})["score"] == {"name": "lp", "p": 2, "alpha": 1}
    assert merge_tables(base, {"score": {"alpha": 1}})["score"] == {"name": "lp", "p": 2, "alpha": 1}
    assert merge_tables({"score": {"alpha": 1}}, {"score": {"name": "lp"}})["score"] == {"alpha": 1, "name": "lp"}
    assert base == {"score": {"name": "lp", "p": 2}, "select": {"group": "row"}}


def test_options_for_a_list_of_steps_are_refused_and_a_step_or_a_list_replaces_it():
    base = {"steps": {"update": ["sparsegpt", {"name": "pcg", "iterations": 5}]}}
    for over in ({"name": "alps", "rounds": 9}, ["alps", "pcg"], "alps"):
        assert merge_tables(base, {"steps": {"update": over}})["steps"]["update"] == over
    column = Column("9", {"steps": {"update": {"iterations": 9}}})
    with pytest.raises(RecipeError, match=r"^t: list at 9: steps\.update: iterations cannot be changed in a list;"):
        ComparisonGrid(Recipe(), (Row(("list",), base, None, "t: "),), (column,))
    (cell,) = ComparisonGrid(Recipe(), (Row(("max",), {"method": "eggs-max"}),), (column,), 1).cells()
    steps = cell.recipe.bound().method.to_dict()["steps"]["update"]
    assert [step["iterations"] for step in steps] == [9, 9]  # options reach every step of a method's own pipeline


@pytest.mark.parametrize(
    ("rows", "columns", "heads", "message"),
    [
        (rows_of("ria", "ria"), columns_of("0.5"), ("method",), "rows: two are labelled 'ria'"),
        (rows_of("ria"), columns_of("0.5", "0.5"), ("method",), "columns: two are labelled '0.5'"),
        (
            (Row(("a", "b"), {}, None, "t.toml, rows[0]: "),),
            columns_of("0.5"),
            ("x",),
            "t.toml, rows[0]: label: expected 1",
        ),
        ((), columns_of("0.5"), ("method",), "needs a row and a column"),
        (rows_of("ria"), (), ("method",), "needs a row and a column"),
        (rows_of("eggs"), columns_of("0.5"), ("method",), "nothing to compare: eggs at 0.5: "),
        (
            (Row(("a",), {"steps": {"score": {"x": 1}}}, None, "t: "),),
            columns_of("0.5"),
            ("method",),
            "t: a at 0.5: steps.sco",
        ),
    ],
)
def test_grids_without_a_valid_table_are_refused(rows, columns, heads, message):
    with pytest.raises(RecipeError) as error:
        ComparisonGrid(Recipe(method="ria") if rows != rows_of("eggs") else Recipe(), rows, columns, heads=heads)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
