import hashlib
import json

import pytest

from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import RecipeError
from eggs_ptp.method.catalogue import METHODS
from eggs_ptp.recipe.read import read_recipe
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe, Target


def refusal(kind=Recipe, **keys):
    with pytest.raises(RecipeError) as caught:
        kind(**keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults():
    recipe = Recipe()
    assert recipe.to_dict() == {
        "seed": 0,
        "pattern": "2:4",
        "method": "eggs+",
        "orders": "fold",
        "share": "readers",
        "mask": None,
        "steps": {},
        "include": [],
        "exclude": [],
        "calibration": {
            "text": None,
            "nsamples": 128,
            "seqlen": None,
            "seed": None,
            "sampling": "packed",
            "text_field": "text",
            "statistics": None,
            "propagate": "pruned",
            "skip_first": 0,
            "massive": None,
        },
        "targets": [],
    }
    assert recipe.bound().method == METHODS["eggs+"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (" 2:4", "2:4"),
        ("04:8", "4:8"),
        (0.5, "0.5"),
        ("0.50", "0.5"),
        (Pattern(1, 4), "1:4"),
        (Unstructured(0.123456789), "0.123456789"),
    ],
)
def test_one_spelling_of_each_pattern(given, kept):
    assert Recipe(pattern=given).pattern == kept
    assert Target(match="a", pattern=given).pattern == kept


@pytest.mark.parametrize("pattern", ["4:2", "0:4", "two:four", "4:4", 0, 1, 1.5, -0.5, float("nan"), ""])
def test_patterns_that_are_none(pattern):
    line = refusal(pattern=pattern)
    assert "a pattern is N:M with 0 < N < M (N kept of every M, such as 2:4) or a sparsity such as 0.5" in line
    assert refusal(targets=[{"match": "a"}, {"match": "b", "pattern": pattern}]).count("targets[1].pattern: ") == 1


@pytest.mark.parametrize("pattern", [True, None, [2, 4]])
def test_patterns_of_another_kind(pattern):
    assert (
        refusal(pattern=pattern)
        == f'pattern: expected a string such as "2:4" or a sparsity such as 0.5, came {pattern!r}'
    )


def test_methods_by_any_spelling_of_their_name():
    assert Recipe(method="RIA-CP").method == "ria_cp"
    assert refusal(method="wandaa").startswith("method: no method is named 'wandaa', did you mean 'wanda'?; ")


@pytest.mark.parametrize("seed", [1.0, "1", True, None])
def test_seeds_are_integers(seed):
    assert refusal(seed=seed) == f"seed: expected a valid integer, came {seed!r}"


def test_seeds_are_not_negative():
    assert refusal(seed=-1) == "seed: expected greater than or equal to 0, came -1"


def test_steps_reach_the_bound_method():
    recipe = Recipe(method="ria", steps={"score": {"alpha": 0.7}, "select": {"name": "top", "group": "row"}})
    steps = recipe.bound().steps
    assert steps["score"].options == {"alpha": 0.7}
    assert steps["select"].options["group"] == "row"


def test_a_string_is_a_step_s_name():
    recipe = Recipe(method="ria", steps={"score": "wanda"})
    assert recipe.steps == {"score": {"name": "wanda"}}
    assert recipe.bound().steps["score"].name == "wanda"


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (
            {"scor": {"alpha": 1}},
            "steps.scor: unknown key, did you mean 'score'?; known: correct, score, permute, ",
        ),
        ({"score": {"alpha": "high"}}, "steps.score.alpha: 'high' is not possible: "),
        ({"score": {"alpa": 0.5}}, "steps.score.alpa: score step 'ria' has no option 'alpa', did you mean 'alpha'?"),
        ({"score": "wnda"}, "steps.score: no score step is named 'wnda', did you mean 'wanda'?"),
        ({"score": "none"}, "steps.select: a select step needs a score step, and 'ria' has none"),
        ({"permute": {"assign": True}}, "steps.permute: method 'ria' has no permute step, so give its name"),
        ({"select": "none"}, "method 'ria' neither selects nor updates"),
        ({"score": 3}, "steps.score: expected a table, came 3"),
        ({"score": {"alpha": {1}}}, "steps.score.alpha: "),
        (3, "steps: expected a table, came 3"),
    ],
)
def test_steps_are_checked_when_the_recipe_is_made(steps, told):
    assert refusal(method="ria", steps=steps).startswith(told)


def test_a_rule_s_steps_are_checked_on_top_of_the_recipe_s():
    rules = [{"match": "a", "skip": True}, {"match": "b", "steps": {"score": {"alpha": -1}}}]
    assert refusal(method="ria", targets=rules).startswith("targets[1].steps.score.alpha: -1 is not possible: ")
    rules[1] = {"match": "b", "method": "wanda", "steps": {"score": {"beta": 1}}}
    told = "targets[1].steps.score.beta: score step 'wanda' has no option 'beta'"
    assert refusal(method="ria", targets=rules).startswith(told)


def test_a_rule_without_a_method_changes_the_recipe_s_steps():
    recipe = Recipe(
        method="ria",
        steps={"score": {"alpha": 0.7}, "select": {"group": "row"}},
        targets=[{"match": "a", "steps": {"score": {"alpha": 1.0}}}, {"match": "b", "method": "ria"}],
    )
    changed, fresh = (recipe.bound(rule) for rule in recipe.targets)
    assert (changed.steps["score"].options["alpha"], changed.steps["select"].options["group"]) == (1.0, "row")
    assert (fresh.steps["score"].options["alpha"], fresh.steps["select"].options["group"]) == (0.5, "layer")


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"match": "a"}, "the rule for 'a' changes nothing; give pattern, method, steps or skip = true"),
        ({"match": "a", "skip": True, "method": "ria"}, "skip = true leaves nothing for method to do"),
        ({"pattern": "2:4"}, "match: is missing"),
        ({"match": "", "pattern": "2:4"}, "match: the string should have at least 1 character, came ''"),
        ({"match": "re:(", "pattern": "2:4"}, "match: 're:(' is no regular expression: "),
        ({"match": "a", "skip": "yes"}, "skip: expected a valid boolean, came 'yes'"),
        ({"match": "a", "patern": "2:4"}, "patern: unknown key, did you mean 'pattern'?"),
    ],
)
def test_rules_that_are_none(rule, told):
    assert refusal(Target, **rule).startswith(told)
    nested = refusal(targets=[rule])
    assert nested.startswith("targets[0]")
    assert told in nested


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"nsamples": 0}, "nsamples: expected greater than or equal to 1, came 0"),
        ({"nsamples": 1.5}, "nsamples: expected a valid integer, came 1.5"),
        ({"seqlen": 1}, "seqlen: expected greater than or equal to 2, came 1"),
        ({"sampling": "random"}, "sampling: expected 'packed' or 'documents', came 'random'"),
        ({"text": ""}, "text: the string should have at least 1 character, came ''"),
        ({"samples": 3}, "samples: unknown key, did you mean 'nsamples'?"),
    ],
)
def test_calibration_values(keys, told):
    assert refusal(CalibrationSpec, **keys).startswith(told)
    assert refusal(calibration=keys).startswith(f"calibration.{told}")


@pytest.mark.parametrize("given", [{}, {"orders": "fold"}])
def test_orders_of_single_matrices_cannot_be_folded(given):
    line = refusal(share="matrix", **given)
    assert line.startswith('share = "matrix" gives each matrix a channel order of its own, and orders = "fold" (the')
    assert line.endswith('can only fold orders that readers share; give orders = "gather" or "mask" with it')
    assert Recipe(share="matrix", orders="gather").share == "matrix"


def test_every_finding_is_told():
    line = refusal(seed="x", share="all", calibration={"nsamples": 0})
    assert [part.split(":")[0] for part in line.split("; ")] == ["seed", "share", "calibration.nsamples"]


@pytest.mark.parametrize(
    ("key", "mean"),
    [("sparsity_type", "pattern"), ("nsamples", "calibration.nsamples"), ("ignore", "exclude"), ("methd", "method")],
)
def test_words_of_other_tools_and_places_lead_to_ours(key, mean):
    assert refusal(**{key: 1}).startswith(f"{key}: unknown key, did you mean {mean!r}?; known: seed, pattern, ")


CHAINS = [
    ["sparsegpt", "pcg"],
    [{"name": "alps", "rho": 0.2}, "connect", {"name": "pcg", "iterations": 40}],
]


@pytest.mark.parametrize("chain", CHAINS)
def test_update_steps_can_be_a_list(tmp_path, chain):
    recipe = Recipe(method="ria_cp", steps={"update": chain}, targets=[{"match": "a", "steps": {"update": chain}}])
    tables = [{"name": link} if isinstance(link, str) else link for link in chain]
    assert recipe.steps["update"] == recipe.to_dict()["steps"]["update"] == tables
    assert [link.name for link in recipe.bound().steps["update"].links] == [link["name"] for link in tables]
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ({"update": ["sparsegpt", "pcq"]}, "steps.update[1]: no update step is named 'pcq', did you mean 'pcg'?"),
        ({"update": ["sparsegpt", 3]}, "steps.update: expected a table, came 3"),
        ({"update": []}, "steps.update: expected the steps of a chain, came none"),
        ({"score": ["ria", "wanda"]}, "steps.score: expected one step, came 'ria+wanda'; only update has chains"),
        ({"update": ["pcg", {"name": "pcg", "damping": -1}]}, "steps.update[1].damping: -1 is not possible: "),
    ],
)
def test_chains_are_checked_when_the_recipe_is_made(steps, told):
    assert refusal(method="ria", steps=steps).startswith(told)


FULL = {
    "seed": 3,
    "pattern": 0.5,
    "method": "ria",
    "orders": "mask",
    "share": "matrix",
    "steps": {"score": {"alpha": 0.25}},
    "include": ["model.*"],
    "exclude": ["re:.*[01]\\.\x7f", 'a"b'],
    "calibration": {"text": "täxt.txt", "nsamples": 4, "seqlen": 16, "sampling": "documents", "text_field": "body"},
    "targets": [{"match": "*.q", "skip": True}, {"match": "*.k", "pattern": "1:4", "steps": {"score": "wanda"}}],
}


@pytest.mark.parametrize("keys", [{}, FULL])
def test_what_is_written_reads_back_the_same(tmp_path, keys):
    recipe = Recipe(**keys)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert read_recipe(path) == recipe


def test_the_digest_is_of_the_content_in_one_spelling():
    recipe = Recipe(**FULL)
    canonical = json.dumps(recipe.to_dict(), sort_keys=True, separators=(",", ":"))
    assert recipe.digest() == hashlib.sha256(canonical.encode()).hexdigest()
    assert Recipe(method="ria-cp", pattern="02:4").digest() == Recipe(method="ria_cp").digest()
    assert Recipe(seed=1).digest() != Recipe().digest()


def test_recipes_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 1
