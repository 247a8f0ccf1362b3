"""Former names of keys, values, steps, options and data: they work, with one line of warning each."""

import json
import warnings

import pytest

from eggs_ptp.errors import RecipeError
from eggs_ptp.method.aliases import current_key, current_step, with_current_names
from eggs_ptp.method.catalogue import METHODS, find_method
from eggs_ptp.method.method import Method
from eggs_ptp.method.step import Step
from eggs_ptp.recipe.read import read_recipe
from eggs_ptp.recipe.recipe import Recipe, TargetRule

PERMUTATION = "recipe key 'orders' is now 'permutation'"
SHARE = "share = 'readers' is now 'consumers'"
STEP = "permute step 'deal' is now 'allocate'"
OPTION = "permute step option 'dealing' is now 'allocation'"


def warned(work):
    """Return a function's result and the warnings that it has raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    assert all(warning.category is FutureWarning for warning in caught)
    messages = [str(warning.message) for warning in caught]
    assert not any("\n" in message for message in messages)
    return result, messages


CURRENT = Recipe(
    method="ria_cp",
    permutation="gather",
    share="consumers",
    steps={"permute": {"name": "allocate", "allocation": "round_robin"}},
)
FORMER = {
    "method": "ria_cp",
    "orders": "gather",
    "share": "readers",
    "steps": {"permute": {"name": "deal", "dealing": "round_robin"}},
}


def test_a_recipe_with_former_names_is_the_one_with_current_names():
    recipe, messages = warned(lambda: Recipe(**FORMER))
    assert messages == [PERMUTATION, SHARE, STEP, OPTION]
    assert recipe == CURRENT
    assert recipe.digest() == CURRENT.digest()
    assert recipe.bound().steps["permute"].options["allocation"] == "round_robin"
    assert "deal" not in recipe.to_toml()
    assert "orders" not in recipe.to_dict()


def test_a_recipe_with_current_names_warns_of_nothing(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(CURRENT.to_toml(), encoding="utf-8")
    assert read_recipe(path) == CURRENT


def test_a_file_with_former_names(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'method = "ria_cp"\norders = "gather"\nshare = "readers"\n'
        '[steps.permute]\nname = "deal"\ndealing = "round_robin"\n'
        '[[targets]]\nmatch = "*.q_proj"\nsteps.permute.dealing = "serpentine"\n'
    )
    recipe, messages = warned(lambda: read_recipe(path))
    assert messages == [PERMUTATION, SHARE, STEP, OPTION, OPTION]
    assert recipe.targets[0].steps == {"permute": {"allocation": "serpentine"}}
    assert recipe.model_copy(update={"targets": ()}) == CURRENT


def test_a_former_key_of_a_file_is_overridden_and_a_bad_value_names_its_line(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('method = "ria_cp"\norders = "fold"\nsteps.permute.dealing = "serpentine"\n')
    recipe, _ = warned(lambda: read_recipe(path, ["steps.permute.allocation=round_robin"], permutation="mask"))
    assert (recipe.permutation, recipe.steps) == ("mask", {"permute": {"allocation": "round_robin"}})
    path.write_text('method = "ria_cp"\norders = "folded"\nsteps.permute.dealing = "out"\n')
    with pytest.warns(FutureWarning), pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert f"recipe {path}, line 2: permutation: expected 'fold', 'gather' or 'mask'" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "messages", "key", "value"),
    [
        ("orders=gather", [PERMUTATION], "permutation", "gather"),
        ("share=readers", [SHARE], "share", "consumers"),
        ("steps.permute=deal", [STEP], "steps", {"permute": {"name": "allocate"}}),
        ("steps.permute.name=deal", [STEP], "steps", {"permute": {"name": "allocate"}}),
        ("steps.permute.dealing=round_robin", [OPTION], "steps", {"permute": {"allocation": "round_robin"}}),
        ("steps={permute = {dealing = 'serpentine'}}", [OPTION], "steps", {"permute": {"allocation": "serpentine"}}),
    ],
)
def test_overrides_with_former_names(override, messages, key, value):
    recipe, warnings_shown = warned(lambda: read_recipe(None, [override], method="ria_cp"))
    assert warnings_shown == messages
    assert getattr(recipe, key) == value


def test_a_keyword_with_a_former_name():
    recipe, messages = warned(lambda: read_recipe(method="ria_cp", orders="mask"))
    assert (recipe.permutation, messages) == ("mask", [PERMUTATION])


def test_a_key_under_both_names_is_refused():
    message = r"orders: unknown key, did you mean 'permutation'\?"
    with pytest.raises(RecipeError, match=message):
        Recipe(orders="gather", permutation="gather")
    with pytest.raises(RecipeError, match=r"has no option 'dealing'"):
        Recipe(method="ria_cp", steps={"permute": {"dealing": "serpentine", "allocation": "serpentine"}})


def test_the_recipe_of_an_older_record():
    stored = json.loads(json.dumps({**CURRENT.to_dict(), **FORMER}))
    del stored["permutation"]
    recipe, messages = warned(lambda: Recipe.model_validate(stored))
    assert recipe == CURRENT
    assert messages == [PERMUTATION, SHARE, STEP, OPTION]


def test_rules_and_methods_in_python():
    rule, messages = warned(lambda: TargetRule(match="a", steps={"permute": "deal"}))
    assert (rule.steps, messages) == ({"permute": {"name": "allocate"}}, [STEP])
    bound, messages = warned(lambda: Step("deal", {"dealing": "round_robin"}).bind("permute"))
    assert (bound, messages) == (Step("allocate", {"allocation": "round_robin"}).bind("permute"), [OPTION, STEP])
    method, messages = warned(lambda: METHODS["ria_cp"].with_options({"permute": {"name": "deal", "passes": 2}}))
    assert method.steps["permute"] == Step("allocate", {"assign": True, "passes": 2})
    assert messages == [STEP]


def test_a_former_step_in_the_name_of_a_method():
    method, messages = warned(lambda: find_method("ria+deal"))
    assert method == find_method("ria+allocate")
    assert messages == [STEP]


def test_a_user_s_step_may_name_its_data_as_before(write_module):
    module = write_module("def f(weight, mask, slabs):\n    return weight, slabs.broadcast(mask)")
    bound, messages = warned(lambda: Step(f"{module}:f").bind("update"))
    assert messages == [f"update step '{module}:f': data 'slabs' is now 'row_tiles'"]
    assert bound.data == ("weight", "mask", "row_tiles")
    assert Method("m", "", "", {"update": Step(f"{module}:f")}).bind().bound_steps[0] == bound


def test_options_of_a_user_s_step_keep_their_names(write_module):
    name = f"{write_module('def f(score, *, dealing=1):' + chr(10) + '    return score')}:f"
    assert current_step("permute", {"name": name, "dealing": 2}) == {"name": name, "dealing": 2}
    table = {"steps": {"permute": name}}
    assert current_key("steps.permute.dealing", table) == "steps.permute.dealing"
    recipe = read_recipe(None, [f"steps.permute={name}", "steps.permute.dealing=2"], method="ria_cp")
    assert recipe.bound().steps["permute"].options == {"dealing": 2}


def test_older_settings_are_brought_to_current_names_without_a_warning():
    settings = {"method": "eggs", "orders": "mask", "steps": {"permute": {"name": "deal", "dealing": "serpentine"}}}
    assert with_current_names(settings, quiet=True) == {
        "method": "eggs",
        "permutation": "mask",
        "steps": {"permute": {"name": "allocate", "allocation": "serpentine"}},
    }
    update = {"update": [{"name": "alps"}, "pcg"]}
    assert with_current_names({"steps": update}) == {"steps": update}
