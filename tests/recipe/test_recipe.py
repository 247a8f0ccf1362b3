import hashlib
import json

import pytest

from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import RecipeError
from eggs_ptp.method.catalogue import METHODS
from eggs_ptp.recipe.read import read_recipe
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe, TargetRule, pattern_text


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
        "permutation": "fold",
        "share": "consumers",
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
            "begin": "auto",
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
    ("value", "pattern", "text"),
    [
        (" 2:4", Pattern(2, 4), "2:4"),
        ("04:8", Pattern(4, 8), "4:8"),
        (0.5, Unstructured(0.5), "0.5"),
        ("0.50", Unstructured(0.5), "0.5"),
        (Pattern(1, 4), Pattern(1, 4), "1:4"),
        (Unstructured(0.123456789), Unstructured(0.123456789), "0.123456789"),
    ],
)
def test_patterns_are_parsed_once_and_written_in_one_spelling(value, pattern, text):
    rule = TargetRule(match="a", pattern=value)
    recipe = Recipe(method="ria", pattern=value, targets=[rule])
    assert recipe.pattern == rule.pattern == recipe.targets[0].pattern == pattern
    assert pattern_text(pattern) == recipe.to_dict()["pattern"] == recipe.to_dict()["targets"][0]["pattern"] == text
    assert recipe.to_toml().count(f'pattern = "{text}"') == 2
    assert Recipe(**recipe.arguments()) == recipe


@pytest.mark.parametrize("pattern", ["4:2", "0:4", "two:four", "4:4", 0, 1, 1.5, -0.5, float("nan"), ""])
def test_impossible_patterns_are_refused(pattern):
    line = refusal(pattern=pattern)
    assert "a pattern is N:M with 0 < N < M (N kept of every M, such as 2:4) or a sparsity such as 0.5" in line
    assert refusal(targets=[{"match": "a"}, {"match": "b", "pattern": pattern}]).count("targets[1].pattern: ") == 1


@pytest.mark.parametrize("pattern", [True, None, [2, 4]])
def test_values_that_are_no_pattern_are_refused(pattern):
    assert (
        refusal(pattern=pattern)
        == f'pattern: expected a string such as "2:4" or a sparsity such as 0.5, got {pattern!r}'
    )


def test_methods_are_found_by_any_spelling_of_their_name():
    assert Recipe(method="RIA-CP").method == "ria_cp"
    assert refusal(method="wandaa").startswith("method: no method is named 'wandaa', did you mean 'wanda'?; ")


@pytest.mark.parametrize("seed", [1.0, "1", True, None])
def test_seeds_are_integers(seed):
    assert refusal(seed=seed) == f"seed: expected a valid integer, got {seed!r}"


def test_seeds_are_not_negative():
    assert refusal(seed=-1) == "seed: expected greater than or equal to 0, got -1"


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
    ("steps", "message"),
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
        ({"score": 3}, "steps.score: expected a table, got 3"),
        ({"score": {"alpha": {1}}}, "steps.score.alpha: "),
        (3, "steps: expected a table, got 3"),
    ],
)
def test_steps_are_checked_when_the_recipe_is_made(steps, message):
    assert refusal(method="ria", steps=steps).startswith(message)


def test_a_rule_s_steps_are_checked_on_top_of_the_recipe_s():
    rules = [{"match": "a", "skip": True}, {"match": "b", "steps": {"score": {"alpha": -1}}}]
    assert refusal(method="ria", targets=rules).startswith("targets[1].steps.score.alpha: -1 is not possible: ")
    rules[1] = {"match": "b", "method": "wanda", "steps": {"score": {"beta": 1}}}
    message = "targets[1].steps.score.beta: score step 'wanda' has no option 'beta'"
    assert refusal(method="ria", targets=rules).startswith(message)


def test_a_rule_without_a_method_changes_the_recipe_s_steps():
    recipe = Recipe(
        method="ria",
        steps={"score": {"alpha": 0.7}, "select": {"group": "row"}},
        targets=[{"match": "a", "steps": {"score": {"alpha": 1.0}}}, {"match": "b", "method": "ria"}],
    )
    changed, from_catalogue = (recipe.bound(rule) for rule in recipe.targets)
    assert (changed.steps["score"].options["alpha"], changed.steps["select"].options["group"]) == (1.0, "row")
    assert (from_catalogue.steps["score"].options["alpha"], from_catalogue.steps["select"].options["group"]) == (
        0.5,
        "layer",
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "a"}, "the rule for 'a' changes nothing; give pattern, method, steps or skip = true"),
        ({"match": "a", "skip": True, "method": "ria"}, "skip = true leaves nothing for method to do"),
        ({"pattern": "2:4"}, "match: is missing"),
        ({"match": "", "pattern": "2:4"}, "match: the string should have at least 1 character, got ''"),
        ({"match": "re:(", "pattern": "2:4"}, "match: 're:(' is not a regular expression: "),
        ({"match": "a", "skip": "yes"}, "skip: expected a valid boolean, got 'yes'"),
        ({"match": "a", "patern": "2:4"}, "patern: unknown key, did you mean 'pattern'?"),
    ],
)
def test_impossible_rules_are_refused(rule, message):
    assert refusal(TargetRule, **rule).startswith(message)
    nested = refusal(targets=[rule])
    assert nested.startswith("targets[0]")
    assert message in nested


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"nsamples": 0}, "nsamples: expected greater than or equal to 1, got 0"),
        ({"nsamples": 1.5}, "nsamples: expected a valid integer, got 1.5"),
        ({"seqlen": 1}, "seqlen: expected greater than or equal to 2, got 1"),
        ({"sampling": "random"}, "sampling: expected 'packed' or 'documents', got 'random'"),
        ({"begin": "always"}, "begin: expected 'auto' or 'never', got 'always'"),
        ({"text": ""}, "text: the string should have at least 1 character, got ''"),
        ({"samples": 3}, "samples: unknown key, did you mean 'nsamples'?"),
    ],
)
def test_calibration_values(keys, message):
    assert refusal(CalibrationSpec, **keys).startswith(message)
    assert refusal(calibration=keys).startswith(f"calibration.{message}")


@pytest.mark.parametrize("keys", [{}, {"permutation": "fold"}])
def test_permutations_of_single_matrices_cannot_be_folded(keys):
    line = refusal(share="matrix", **keys)
    assert line.startswith('share = "matrix" gives each matrix a permutation of its own, and permutation = "fold" (the')
    assert line.endswith('one that all consumers of an activation share; give permutation = "gather" or "mask" with it')
    assert Recipe(share="matrix", permutation="gather").share == "matrix"


def test_every_problem_is_named():
    line = refusal(seed="x", share="all", calibration={"nsamples": 0})
    assert [problem.split(":")[0] for problem in line.split("; ")] == ["seed", "share", "calibration.nsamples"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [("sparsity_type", "pattern"), ("nsamples", "calibration.nsamples"), ("ignore", "exclude"), ("methd", "method")],
)
def test_keys_of_other_tools_lead_to_the_recipe_s(key, meant):
    assert refusal(**{key: 1}).startswith(f"{key}: unknown key, did you mean {meant!r}?; known: seed, pattern, ")


PIPELINES = [
    ["sparsegpt", "pcg"],
    [{"name": "alps", "rho": 0.2}, "connect", {"name": "pcg", "iterations": 40}],
]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_update_steps_can_be_a_list(tmp_path, pipeline):
    recipe = Recipe(
        method="ria_cp", steps={"update": pipeline}, targets=[{"match": "a", "steps": {"update": pipeline}}]
    )
    tables = [{"name": step} if isinstance(step, str) else step for step in pipeline]
    assert recipe.steps["update"] == recipe.to_dict()["steps"]["update"] == tables
    assert [step.name for step in recipe.bound().steps["update"].bound_steps] == [table["name"] for table in tables]
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"update": ["sparsegpt", "pcq"]}, "steps.update[1]: no update step is named 'pcq', did you mean 'pcg'?"),
        ({"update": ["sparsegpt", 3]}, "steps.update: expected a table, got 3"),
        ({"update": []}, "steps.update: expected the steps of a pipeline, got none"),
        ({"score": ["ria", "wanda"]}, "steps.score: expected one step, got 'ria+wanda'; only update may have several"),
        ({"update": ["pcg", {"name": "pcg", "damping": -1}]}, "steps.update[1].damping: -1 is not possible: "),
    ],
)
def test_pipelines_are_checked_when_the_recipe_is_made(steps, message):
    assert refusal(method="ria", steps=steps).startswith(message)


FULL = {
    "seed": 3,
    "pattern": 0.5,
    "method": "ria",
    "permutation": "mask",
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
