import pytest

from eggs_ptp.cli.methods import _allowed
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.method.catalogue import DEFAULT_METHOD, METHODS
from eggs_ptp.method.step import SLOTS, names
from eggs_ptp.recipe.read import read_recipe


def test_lists_every_method_with_needs_and_source(eggs):
    out = " ".join(eggs("methods").out.split())
    for method in METHODS.values():
        assert method.name in out
        assert method.source.split(",")[0] in out
    assert f"{DEFAULT_METHOD} (default)" in out
    for slot in SLOTS:
        assert all(name in out for name in names(slot))


def test_lists_them_as_json(eggs):
    found = eggs("methods", "--json").json
    assert [row["name"] for row in found["methods"]] == list(METHODS)
    needs = {row["name"]: row["statistics"] for row in found["methods"]}
    assert needs["magnitude"] == []
    assert needs["wanda"] == ["input_norm"]
    assert [row["name"] for row in found["methods"] if row["default"]] == [DEFAULT_METHOD]
    assert "wanda" in found["steps"]["score"]


@pytest.mark.parametrize("name", METHODS)
def test_explains_each_with_every_option(eggs, name):
    method = METHODS[name].bind()
    found = eggs("methods", name, "--json").json
    assert [step["slot"] for step in found["steps"]] == [link.slot for link in method.links]
    for step, bound in zip(found["steps"], method.links, strict=True):
        assert {option["name"]: option["value"] for option in step["options"]} == dict(bound.options)
        assert step["formula"]
        assert step["source"]
        assert all(option["allowed"] for option in step["options"])
    assert found["statistics"] == {wanted: STATISTICS[wanted].formula for wanted in method.statistics}
    out = eggs("methods", name).out
    for step in found["steps"]:
        assert step["formula"].splitlines()[0] in out
        assert all(option["name"] in out for option in step["options"])


def test_says_what_differs_from_the_ingredients_default(eggs):
    (select,) = [step for step in eggs("methods", "eggs", "--json").json["steps"] if step["slot"] == "select"]
    blocks = next(option for option in select["options"] if option["name"] == "B")
    assert (blocks["value"], blocks["default"], blocks["allowed"]) == ("auto", 5, 'integer >= 0 or "auto"')


def test_an_unknown_method_has_a_near_one(eggs):
    assert "no method is named 'wand', did you mean 'wanda'?" in eggs("methods", "wand").error


def test_allowed_values_in_words():
    from typing import Annotated, Literal

    from pydantic import Field

    assert _allowed(bool) == "true | false"
    assert _allowed(Literal["a", 1]) == '"a" | 1'
    assert _allowed(Annotated[float, Field(gt=0, le=1)]) == "number > 0 and <= 1"
    assert _allowed(int | None) == "integer or null"


@pytest.mark.parametrize("name", METHODS)
def test_each_as_a_recipe_file_with_the_same_steps(eggs, tmp_path, name):
    file = tmp_path / "recipe.toml"
    file.write_text(eggs("methods", name, "--recipe").out)
    recipe = read_recipe(file)
    assert recipe.bound().method.to_dict()["steps"] == METHODS[name].to_dict()["steps"]
    assert not [line for line in file.read_text().splitlines() if "None" in line]


def test_a_recipe_is_of_one_method(eggs):
    ran = eggs("methods", "--recipe")
    assert (ran.code, "expected its name" in ran.err) == (2, True)
