import pytest

from eggs_ptp.cli.methods import allowed_values
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.method.catalogue import DEFAULT_METHOD, METHODS
from eggs_ptp.method.step import SLOTS, names
from eggs_ptp.recipe.read import read_recipe


def test_lists_every_method_with_statistics_and_source(eggs):
    out = " ".join(eggs("methods").out.split())
    for method in METHODS.values():
        assert method.name in out
        assert method.source.split(",")[0] in out
    assert f"{DEFAULT_METHOD} (default)" in out
    for slot in SLOTS:
        assert all(name in out for name in names(slot))


def test_lists_them_as_json(eggs):
    catalogue = eggs("methods", "--json").json
    assert [row["name"] for row in catalogue["methods"]] == list(METHODS)
    statistics = {row["name"]: row["statistics"] for row in catalogue["methods"]}
    assert statistics["magnitude"] == []
    assert statistics["wanda"] == ["input_norm"]
    assert [row["name"] for row in catalogue["methods"] if row["default"]] == [DEFAULT_METHOD]
    assert "wanda" in catalogue["steps"]["score"]


@pytest.mark.parametrize("name", METHODS)
def test_explains_each_with_every_option(eggs, name):
    method = METHODS[name].bind()
    description = eggs("methods", name, "--json").json
    assert [step["slot"] for step in description["steps"]] == [step.slot for step in method.bound_steps]
    for step, bound in zip(description["steps"], method.bound_steps, strict=True):
        assert {option["name"]: option["value"] for option in step["options"]} == dict(bound.options)
        assert step["formula"]
        assert step["source"]
        assert all(option["allowed"] for option in step["options"])
    assert description["statistics"] == {name: STATISTICS[name].formula for name in method.statistics}
    out = eggs("methods", name).out
    for step in description["steps"]:
        assert step["formula"].splitlines()[0] in out
        assert all(option["name"] in out for option in step["options"])


def test_shows_values_that_differ_from_the_default_of_a_step(eggs):
    (select,) = [step for step in eggs("methods", "eggs", "--json").json["steps"] if step["slot"] == "select"]
    blocks = next(option for option in select["options"] if option["name"] == "B")
    assert (blocks["value"], blocks["default"], blocks["allowed"]) == ("auto", 5, 'integer >= 0 or "auto"')


def test_an_unknown_method_gets_a_suggestion(eggs):
    assert "no method is named 'wand', did you mean 'wanda'?" in eggs("methods", "wand").error


def test_allowed_values():
    from typing import Annotated, Literal

    from pydantic import Field

    assert allowed_values(bool) == "true | false"
    assert allowed_values(Literal["a", 1]) == '"a" | 1'
    assert allowed_values(Annotated[float, Field(gt=0, le=1)]) == "number > 0 and <= 1"
    assert allowed_values(int | None) == "integer or null"


@pytest.mark.parametrize("name", METHODS)
def test_each_as_a_recipe_file_with_the_same_steps(eggs, tmp_path, name):
    file = tmp_path / "recipe.toml"
    file.write_text(eggs("methods", name, "--recipe").out)
    recipe = read_recipe(file)
    assert recipe.bound().method.to_dict()["steps"] == METHODS[name].to_dict()["steps"]
    assert not [line for line in file.read_text().splitlines() if "None" in line]


def test_a_recipe_needs_the_name_of_a_method(eggs):
    ran = eggs("methods", "--recipe")
    assert (ran.code, "expected its name" in ran.err) == (2, True)
