"""Which runs a comparison is made of."""

import pytest

from eggs_ptp.comparison.grid import Column, Grid, Row, merged
from eggs_ptp.errors import RecipeError
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe


def by(*methods):
    return tuple(Row((method,), {"method": method}) for method in methods)


def at(*patterns):
    return tuple(Column(pattern, {"pattern": pattern}) for pattern in patterns)


def runs(grid):
    return [(*cell.place[0], cell.place[1], cell.recipe.seed) for cell in grid.cells()]


def test_every_row_meets_every_column_with_every_seed_and_a_table_of_the_first_seed_comes_first():
    grid = Grid(Recipe(), by("wanda", "ria"), at("0.5", "2:4"), 2)
    assert runs(grid) == [
        (method, pattern, seed) for seed in (0, 1) for method in ("wanda", "ria") for pattern in ("0.5", "2:4")
    ]
    assert [(cell.recipe.method, cell.recipe.pattern) for cell in grid.cells()][:2] == [
        ("wanda", "0.5"),
        ("wanda", "2:4"),
    ]


def test_the_first_seed_is_the_recipes():
    assert runs(Grid(Recipe(seed=7), by("wanda"), at("0.5"), 2)) == [("wanda", "0.5", 7), ("wanda", "0.5", 8)]


def test_a_row_may_have_its_own_number_of_seeds():
    rows = (Row(("a",), {"method": "wanda"}, 3), Row(("b",), {"method": "ria"}))
    assert [run[0] for run in runs(Grid(Recipe(), rows, at("0.5"), 1))] == ["a", "b", "a", "a"]


@pytest.mark.parametrize(
    ("method", "text", "seeds"),
    [
        ("magnitude", None, 1),  # the weights alone
        ("wanda", None, 3),  # windows are drawn
        ("wanda", "windows.npy", 1),  # windows are given
        ("stochria", "windows.npy", 3),  # sums are sampled
    ],
)
def test_seeds_that_change_nothing_are_not_run(method, text, seeds):
    recipe = Recipe(calibration=CalibrationSpec(text=text))
    assert len(runs(Grid(recipe, by(method), at("0.5"), 3))) == seeds


def test_a_rule_for_some_matrices_counts_too():
    rule = {"match": "*.k_proj", "method": "wanda"}
    row = Row(("magnitude",), {"method": "magnitude", "targets": [rule]})
    assert len(runs(Grid(Recipe(), (row,), at("0.5"), 3))) == 3
    ours = Row(("magnitude",), {"method": "magnitude", "targets": [{"match": "*.k_proj", "method": "eggs"}]})
    assert Grid(Recipe(), (ours, *by("ria")), at("0.5")).left_out.keys() == {(("magnitude",), "0.5")}


def test_cells_without_a_meaning_are_left_out_with_the_reason():
    grid = Grid(Recipe(), by("eggs", "ria"), at("0.5", "2:4"), 1)
    assert runs(grid) == [("eggs", "2:4", 0), ("ria", "0.5", 0), ("ria", "2:4", 0)]
    (reason,) = grid.left_out.values()
    assert reason.startswith("eggs at 0.5: ")
    assert reason.endswith("needs an N:M pattern such as 2:4, not 0.5")


def test_changes_lie_over_one_another():
    recipe = Recipe(method="ria", steps={"select": {"group": "row"}}, calibration=CalibrationSpec(nsamples=4))
    row = Row(("lp",), {"steps": {"score": {"name": "lp", "alpha": 1}}, "calibration": {"seqlen": 8}})
    column = Column("p = 2", {"steps": {"score": {"p": 2}}, "pattern": 0.3})
    (cell,) = Grid(recipe, (row,), (column,), 1).cells()
    assert cell.recipe.steps == {"select": {"group": "row"}, "score": {"name": "lp", "alpha": 1, "p": 2}}
    assert (cell.recipe.calibration.nsamples, cell.recipe.calibration.seqlen) == (4, 8)
    assert (cell.recipe.pattern, cell.recipe.method) == ("0.3", "ria")


def test_a_step_of_another_name_brings_no_options_of_the_one_before():
    under = {"score": {"name": "lp", "p": 2}, "select": {"group": "row"}}
    assert merged(under, {"score": {"name": "ria"}}) == {"score": {"name": "ria"}, "select": {"group": "row"}}
    assert merged(under, {"score": {"name": "lp", "alpha": 1}})["score"] == {"name": "lp", "p": 2, "alpha": 1}
    assert merged(under, {"score": {"alpha": 1}})["score"] == {"name": "lp", "p": 2, "alpha": 1}
    assert merged({"score": {"alpha": 1}}, {"score": {"name": "lp"}})["score"] == {"alpha": 1, "name": "lp"}
    assert under == {"score": {"name": "lp", "p": 2}, "select": {"group": "row"}}


def test_options_over_a_chain_are_refused_and_a_step_or_a_chain_takes_its_place():
    under = {"steps": {"update": ["sparsegpt", {"name": "pcg", "iterations": 5}]}}
    for over in ({"name": "alps", "rounds": 9}, ["alps", "pcg"], "alps"):
        assert merged(under, {"steps": {"update": over}})["steps"]["update"] == over
    column = Column("9", {"steps": {"update": {"iterations": 9}}})
    with pytest.raises(RecipeError, match=r"^t: chain at 9: steps\.update: iterations cannot be laid over a list;"):
        Grid(Recipe(), (Row(("chain",), under, None, "t: "),), (column,))
    (cell,) = Grid(Recipe(), (Row(("max",), {"method": "eggs-max"}),), (column,), 1).cells()
    links = cell.recipe.bound().method.to_dict()["steps"]["update"]
    assert [link["iterations"] for link in links] == [9, 9]  # a method's own chain takes options for every link


@pytest.mark.parametrize(
    ("rows", "columns", "heads", "message"),
    [
        (by("ria", "ria"), at("0.5"), ("method",), "rows: two are labelled 'ria'"),
        (by("ria"), at("0.5", "0.5"), ("method",), "columns: two are labelled '0.5'"),
        ((Row(("a", "b"), {}, None, "t.toml, rows[0]: "),), at("0.5"), ("x",), "t.toml, rows[0]: label: 1 expected"),
        ((), at("0.5"), ("method",), "needs a row and a column"),
        (by("ria"), (), ("method",), "needs a row and a column"),
        (by("eggs"), at("0.5"), ("method",), "nothing to compare: eggs at 0.5: "),
        ((Row(("a",), {"steps": {"score": {"x": 1}}}, None, "t: "),), at("0.5"), ("method",), "t: a at 0.5: steps.sco"),
    ],
)
def test_what_makes_no_table_is_refused(rows, columns, heads, message):
    with pytest.raises(RecipeError) as caught:
        Grid(Recipe(method="ria") if rows != by("eggs") else Recipe(), rows, columns, heads=heads)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
