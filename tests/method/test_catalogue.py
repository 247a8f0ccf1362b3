"""The catalogue: every row is a method that can be run, found by name and written down."""

import json
import re

import pytest

from eggs_ptp.errors import MethodError
from eggs_ptp.method.catalogue import DEFAULT_METHOD, METHODS, find_method
from eggs_ptp.method.method import Method
from eggs_ptp.method.step import Step


def test_the_promised_rows_are_there():
    assert {"magnitude", "wanda", "ri", "ria", "ria_cp", "eggs_paper", "eggs", "eggs+", "eggs-max"} <= METHODS.keys()
    assert DEFAULT_METHOD == "eggs+"


@pytest.mark.parametrize("name", METHODS)
def test_a_row_binds_and_its_record_makes_the_same_method_again(name):
    row = METHODS[name]
    assert row.name == name
    assert row.title
    assert row.source
    record = json.loads(json.dumps(row.to_dict()))
    again = Method(name, "", "", {}).with_options(record["steps"])
    assert again.to_dict() == record == row.to_dict()
    bound = row.bind()
    bound_again = again.bind()
    assert [(s.name, s.function, dict(s.options)) for s in bound.bound_steps] == [
        (s.name, s.function, dict(s.options)) for s in bound_again.bound_steps
    ]


def test_methods_that_use_no_activations_take_no_statistics():
    for name in ("magnitude", "ri"):
        assert METHODS[name].bind().statistics == frozenset()
    for name in ("wanda", "ria", "ria_cp", "eggs_paper", "eggs"):
        assert METHODS[name].bind().statistics == {"input_norm"}


def test_the_reading_of_the_paper_is_the_recommended_one():
    steps = METHODS["eggs_paper"].to_dict()["steps"]
    assert steps["score"] == {"name": "ria", "alpha": 0.5}
    assert (steps["permute"]["allocation"], steps["permute"]["assign"]) == ("serpentine", False)
    assert (steps["select"]["B"], steps["select"]["diagonal"], steps["select"]["block"]) == (5, "circulant", "square")


@pytest.mark.parametrize("written", ["eggs_paper", "eggs-paper", " EGGS-Paper "])
def test_a_method_is_found_however_it_is_written(written):
    assert find_method(written) is METHODS["eggs_paper"]


@pytest.mark.parametrize("written", ["ria_cp+wanda", "RIA-CP + Wanda"])
def test_a_step_after_a_plus_replaces_the_one_of_its_slot(written):
    joined = find_method(written)
    assert joined.name == "ria_cp+wanda"
    assert joined.steps == {**METHODS["ria_cp"].steps, "score": Step("wanda")}
    assert find_method(joined.name) == joined


def test_a_row_after_a_plus_brings_all_its_steps():
    joined = find_method("magnitude+eggs_paper+top")
    assert joined.steps == {**METHODS["eggs_paper"].steps, "select": Step("top")}
    assert joined.source == "Zhu & Gupta, arXiv:1710.01878; EGGS-PTP, arXiv:2508.09471"
    joined.bind()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eggz", "no method is named 'eggz', did you mean 'eggs'?; `eggs methods` lists them"),
        ("ria-pc", "no method is named 'ria-pc', did you mean 'ria_cp'?"),
        ("xyzzy", "no method is named 'xyzzy'; `eggs methods` lists them"),
        ("", "no method is named ''; `eggs methods` lists them"),
        ("top+wanda", "no method is named 'top+wanda'"),
        (
            "wanda+expandr",
            "'expandr' is neither a step nor a method, did you mean 'expander'?; `eggs methods` lists them",
        ),
        ("wanda+", "'' is neither a step nor a method; `eggs methods` lists them"),
    ],
)
def test_an_unknown_method_is_named_with_the_nearest(name, message):
    with pytest.raises(MethodError, match=re.escape(message)):
        find_method(name)


def test_a_preset_keeps_its_options_when_its_name_is_extended():
    joined = find_method("wanda+r2dsnot+sparsegpt")
    assert joined.steps["refine"] == METHODS["wanda+r2_dsnot"].steps["refine"]
    assert joined.steps["update"].name == "sparsegpt"


@pytest.mark.parametrize("name", ["magnitude+dsnot", "ria+dsnot", "magnitude+r2_dsnot"])
def test_refining_by_swaps_within_rows_starts_from_rows(name):
    assert find_method(name).bind().steps["select"].options["group"] == "row"


def test_a_score_that_no_step_uses_is_refused():
    with pytest.raises(MethodError, match=r"^steps\.score: nothing in 'sparsegpt\+wanda' uses the score of 'wanda'"):
        find_method("sparsegpt+wanda").bind()
