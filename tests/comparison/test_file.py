"""Comparison files, and the tables that ship with the package."""

import re
from pathlib import Path

import pytest

from eggs_ptp.comparison.file import read_comparison, shipped_tables
from eggs_ptp.errors import MethodError, PatternError, RecipeError

FILE = """\
title = "A table"
heads = ["method", "group"]
patterns = [0.5, "2:4"]
seeds = 2
nonsense = 1

[calibration]
nsamples = 4

[[rows]]
label = ["wanda", "row"]
method = "wanda"

[[rows]]
label = ["ria", "layer"]
method = "ria"
seeds = 1
steps.score = "lp"
"""
GOOD = FILE.replace("nonsense = 1\n", "")


@pytest.fixture
def comparison_file(tmp_path):
    """`comparison_file("seeds = 2")`: the path of a file with this text."""

    def write(text):
        path = tmp_path / "table.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_has_rows_columns_and_seeds_next_to_the_common_recipe(comparison_file):
    grid = read_comparison(comparison_file(GOOD))
    assert (grid.title, grid.heads, grid.seeds) == ("A table", ("method", "group"), 2)
    assert [row.labels for row in grid.rows] == [("wanda", "row"), ("ria", "layer")]
    assert [column.label for column in grid.columns] == ["0.5", "2:4"]
    cells = list(grid.cells())
    assert len(cells) == 2 * 2 + 2
    assert {cell.recipe.calibration.nsamples for cell in cells} == {4}
    assert cells[2].recipe.steps == {"score": {"name": "lp"}}


def test_without_a_file_it_is_the_default_method():
    grid = read_comparison()
    assert [row.labels for row in grid.rows] == [("eggs+",)]
    assert [column.label for column in grid.columns] == ["2:4"]
    assert (grid.heads, grid.seeds, grid.title) == (("method",), 3, "")


def test_a_plain_recipe_is_one_row(comparison_file):
    grid = read_comparison(comparison_file('method = "ria"\npattern = "4:8"\nseed = 5\nsteps.score.alpha = 1\n'))
    (cell,) = list(grid.cells())[:1]
    assert cell.key == (("ria",), "4:8")
    assert (cell.recipe.seed, cell.recipe.steps) == (5, {"score": {"alpha": 1}})


def test_arguments_replace_rows_columns_and_seeds_of_the_file(comparison_file):
    path = comparison_file(GOOD)
    grid = read_comparison(path, methods=["Wanda", "ria-cp"], patterns=["4:8"], seeds=1, nsamples=2)
    assert [row.labels for row in grid.rows] == [("wanda",), ("ria_cp",)]
    assert [column.label for column in grid.columns] == ["4:8"]
    assert (grid.heads, len(list(grid.cells()))) == (("method",), 2)
    assert grid.recipe.calibration.nsamples == 2
    assert [len(list(read_comparison(path, seeds=seeds).cells())) for seeds in (1, 3)] == [4, 12]
    assert read_comparison(path, ["calibration.nsamples=8"]).recipe.calibration.nsamples == 8


def test_a_file_sets_the_evaluation(comparison_file):
    evaluation = 'text = "a.jsonl"\ntext_field = "body"\nprotocol = "documents"\nseqlen = 64\nmax_windows = 3\n'
    assert read_comparison(comparison_file(f"{GOOD}[evaluation]\n{evaluation}")).evaluation == {
        "text": "a.jsonl",
        "text_field": "body",
        "protocol": "documents",
        "seqlen": 64,
        "max_windows": 3,
    }
    assert read_comparison(comparison_file(f"{GOOD}[evaluation]\nseqlen = 64\n")).evaluation == {"seqlen": 64}
    assert read_comparison(comparison_file(GOOD)).evaluation == read_comparison().evaluation == {}


def test_methods_are_combined_by_plus():
    (row,) = read_comparison(methods=["wanda + DSnoT"]).rows
    assert row.labels == ("wanda+dsnot",)


def test_common_options_need_not_fit_a_default_that_no_row_uses():
    grid = read_comparison(None, ["steps.select.group=row"], methods=["wanda", "ria"], patterns=["0.5"])
    assert {cell.recipe.bound().steps["select"].options["group"] for cell in grid.cells()} == {"row"}


def test_columns_change_any_key_of_the_recipe(comparison_file):
    path = comparison_file(
        'pattern = 0.5\nrows = [{ label = "RIA", method = "ria" }]\n'
        '[[columns]]\nlabel = "0"\nsteps.score.alpha = 0\n[[columns]]\n[columns.steps]\nscore = "wanda"\n'
    )
    first, second = list(read_comparison(path, seeds=1).cells())
    assert (first.key, first.recipe.steps) == ((("RIA",), "0"), {"score": {"alpha": 0}})
    assert (second.key, second.recipe.steps) == ((("RIA",), ""), {"score": {"name": "wanda"}})


def test_rows_with_their_own_patterns_have_one_column(comparison_file):
    path = comparison_file(
        'rows = [{ label = "a", pattern = 0.5 }, { method = "wanda", pattern = "2:4" }]\nmethod = "ria"\n'
    )
    grid = read_comparison(path, seeds=1)
    assert [(cell.key, str(cell.recipe.pattern), cell.recipe.method) for cell in grid.cells()] == [
        ((("a",), ""), "0.5", "ria"),
        ((("wanda",), ""), "2:4", "wanda"),
    ]
    with pytest.raises(RecipeError, match="already sets patterns in its rows or columns; leave out --patterns"):
        read_comparison(path, patterns=["2:4"])


def test_a_search_samples_rows(comparison_file):
    path = comparison_file(
        'pattern = 0.5\nheads = ["base", "alpha"]\n[[search]]\nlabel = "RIA"\nmethod = "ria"\ndraws = 2\nseed = 1\n'
        '[search.choices]\n"steps.score.alpha" = [0, 0.5, 1]\n'
    )
    rows = read_comparison(path).rows
    assert len(rows) == 2
    assert [row.labels for row in rows] == [("RIA", str(row.changes["steps"]["score"]["alpha"])) for row in rows]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE, "unknown key"),
        ("seeds = ", "line 1, column 9: not TOML"),
        ("patterns = [2:4]", "line 1"),
        ("seeds = 0", "table.toml: seeds: expected"),
        ("seeds = 1.5", "table.toml: seeds: expected"),
        ("patterns = []", "table.toml: patterns: "),
        ('patterns = ["5:4"]', "table.toml: patterns: pattern 5:4 keeps 5 of 4"),
        ('rows = ["wanda"]', "table.toml, rows[0]: "),
        ('colums = []\nmethod = "ria"', "unknown key 'colums', did you mean 'columns'?"),
        ("sparsity = 0.5", "table.toml, line 1: sparsity: unknown key, did you mean 'pattern'"),
        ('[[rows]]\nmethod = "ria"\n\n[[rows]]\nmethod = "wnda"', "line 4, rows[1]: method: no method is named 'wnda'"),
        ("[[rows]]\npattern = 0.5", "line 1, rows[0]: a row needs a label or a method"),
        ('[[rows]]\nmethod = "ria"\nseed = 1', "line 1, rows[0]: seed: a row has no seed; give seeds = N"),
        (
            '[[rows]]\nmethod = "ria"\npatern = 1',
            "line 1, rows[0]: ria at 2:4: patern: unknown key, did you mean 'pattern'",
        ),
        ('[[rows]]\nmethod = "ria"\nlabel = 1', "line 1, rows[0]: label"),
        ('[[rows]]\nmethod = "ria"\nlabel = ["a", "b"]', "line 1, rows[0]: label: expected 1, one under each of"),
        ('[[rows]]\nmethod = "ria"\nsteps.score.alpha = -1', "line 1, rows[0]: ria at 2:4: steps.score.alpha: "),
        ('rows = [{ label = "x", method = "ria", steps.score = "wnda" }]', "rows[0]: x at 2:4: steps.score: no score"),
        ('columns = [{ label = "x" }]\npatterns = ["2:4"]', "give patterns or columns, not both"),
        ('[[columns]]\nlabel = "x"\nseeds = 2', "line 1, columns[0]: seeds: a column has no seeds"),
        ('[[columns]]\nlabel = ["x", "y"]', "line 1, columns[0]: label: a column has one label, got ['x', 'y']"),
        ("[evaluation]\nmax_window = 3", "evaluation.max_window: unknown key, did you mean 'max_windows'"),
        ("[evaluation]\nprotocol = 'loose'", "evaluation.protocol: expected 'packed' or 'documents', got 'loose'"),
        ("[evaluation]\nseqlen = 1", "evaluation.seqlen: expected"),
        ("[evaluation]\nmax_windows = 0", "evaluation.max_windows: expected"),
        ("evaluation = 3", "table.toml: evaluation: expected a table, got 3"),
        ("[evalution]\nseqlen = 8", "unknown key 'evalution', did you mean 'evaluation'?"),
        ("[[search]]\ndraws = 3", "line 1, search[0]: choices: is missing"),
        (
            '[[search]]\ndraws = 3\n[search.choices]\npattern = ["2:4"]',
            "line 1, search[0]: draws: 3 are more than the 1",
        ),
    ],
)
def test_an_invalid_file_is_refused_in_one_line_with_the_place_of_the_error(comparison_file, text, message):
    with pytest.raises((RecipeError, PatternError)) as error:
        read_comparison(comparison_file(text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "table.toml" in str(error.value)


def test_invalid_arguments_are_refused():
    with pytest.raises(MethodError, match="no method is named 'wnda', did you mean 'wanda'"):
        read_comparison(methods=["wanda", "wnda"])
    with pytest.raises(PatternError, match="--patterns: pattern 5:4 keeps 5 of 4"):
        read_comparison(patterns=["5:4"])
    with pytest.raises(RecipeError, match="rows: two are labelled 'ria_cp'"):
        read_comparison(methods=["ria-cp", "ria_cp"])
    with pytest.raises(RecipeError, match=r"--methods: magnitude at 2:4: steps\.score\.alpha: .*no option"):
        read_comparison(None, ["steps.score.alpha=1"], methods=["ria", "magnitude"])


def test_missing_files_are_refused_with_the_nearest_shipped_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no such file, and no shipped table, did you mean 'table-2'"):
        read_comparison(Path("tabel-2"))
    with pytest.raises(RecipeError, match=r"table-2\.toml cannot be read"):
        read_comparison(Path("table-2.toml"))
    Path("table-2").write_text('title = "a local file"')
    assert read_comparison(Path("table-2")).title == "a local file"
    assert len(shipped_tables()) == 9


def test_the_files_in_the_documentation_are_valid(comparison_file):
    page = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text(encoding="utf-8")
    first, search = (read_comparison(comparison_file(text)) for text in re.findall(r"```toml\n(.*?)```", page, re.S))
    assert [(row.labels, row.seeds) for row in first.rows] == [(("RIA", ""), None), (("StochRIA", "5 seeds"), 5)]
    assert len(list(first.cells())) == 2 * (3 + 5)
    assert {cell.recipe.steps["score"]["alpha"] for cell in first.cells()} == {0.5, 1}
    assert len(search.rows) == 4
    assert (first.evaluation["text"], first.evaluation["seqlen"], search.evaluation) == ("heldout.jsonl", 1024, {})
