import pytest

from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import PatternError, RecipeError
from eggs_ptp.recipe.recipe import Recipe
from eggs_ptp.recipe.targets import Resolved, Skipped, matches, resolve

NAMES = [
    f"model.layers.{block}.{linear}"
    for block in (0, 1, 10)
    for linear in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]


def refusal(names=NAMES, kind=RecipeError, **keys):
    with pytest.raises(kind) as caught:
        resolve(Recipe(**keys), names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("glob", "count"),
    [
        ("*", 12),
        ("*.mlp.*", 6),
        ("model.layers.1.*", 4),
        ("model.layers.[01].*", 8),
        ("*.self_attn.?_proj", 6),
        ("model.layers.0.mlp.up_proj", 1),
        ("re:.*mlp", 6),
        (r"re:model\.layers\.1\.", 4),
        ("re:mlp", 0),
        ("mlp", 0),
        ("*.MLP.*", 0),
    ],
)
def test_globs_names_and_regular_expressions(glob, count):
    assert sum(matches(glob, name) for name in NAMES) == count


def test_without_rules_the_recipe_applies_to_all():
    decisions = resolve(Recipe(pattern="1:4", method="wanda"), NAMES)
    assert list(decisions) == NAMES
    assert {decision.pattern for decision in decisions.values()} == {Pattern(1, 4)}
    assert {decision.method.method.name for decision in decisions.values()} == {"wanda"}


def test_the_first_rule_that_matches_applies():
    recipe = Recipe(
        method="ria",
        steps={"score": {"alpha": 0.7}},
        targets=[
            {"match": "model.layers.0.mlp.*", "pattern": 0.5},
            {"match": "model.layers.0.*", "skip": True},
            {"match": "*.down_proj", "method": "magnitude"},
            {"match": "*.up_proj", "steps": {"score": {"alpha": 1.0}}},
        ],
    )
    decisions = resolve(recipe, NAMES)

    def resolved(name):
        decision = decisions[f"model.layers.{name}"]
        score = decision.method.steps["score"]
        return str(decision.pattern), decision.method.method.name, score.options.get("alpha")

    assert resolved("0.mlp.up_proj") == ("0.5", "ria", 0.7)
    assert resolved("0.mlp.down_proj") == ("0.5", "ria", 0.7)
    assert decisions["model.layers.0.self_attn.q_proj"] == Skipped("skipped by targets[1] 'model.layers.0.*'")
    assert resolved("1.mlp.down_proj") == ("2:4", "magnitude", None)
    assert resolved("10.mlp.up_proj") == ("2:4", "ria", 1.0)
    assert resolved("10.self_attn.q_proj") == ("2:4", "ria", 0.7)
    assert decisions["model.layers.0.mlp.up_proj"].pattern == Unstructured(0.5)


def test_include_and_exclude():
    recipe = Recipe(
        method="ria",
        include=["*.mlp.*"],
        exclude=["model.layers.0.*"],
        targets=[{"match": "model.layers.0.*", "pattern": "1:4"}],
    )
    decisions = resolve(recipe, NAMES)
    assert decisions["model.layers.0.mlp.up_proj"] == Skipped("excluded by 'model.layers.0.*'")
    assert decisions["model.layers.1.self_attn.q_proj"] == Skipped("not included")
    pruned = [name for name, decision in decisions.items() if isinstance(decision, Resolved)]
    assert pruned == [name for name in NAMES if ".mlp." in name and ".0." not in name]


NAMES_HINT = "; their names look like 'model.layers.0.self_attn.q_proj'"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"include": ["*.mpl.*"]}, "include '*.mpl.*' matches none of the 12 matrices"),
        (
            {"exclude": ["*", "*.down_prj"]},
            "exclude '*.down_prj' matches none of the 12 matrices, did you mean 'down_proj'?",
        ),
        (
            {"targets": [{"match": "*", "skip": True}, {"match": "re:.*mlp.up_porj", "skip": True}]},
            "targets[1].match 're:.*mlp.up_porj' matches none of the 12 matrices, did you mean 'mlp.up_proj'?",
        ),
        (
            {"targets": [{"match": "model.layer.1.mlp.up_proj", "pattern": "4:8"}]},
            "targets[0].match 'model.layer.1.mlp.up_proj' matches none of the 12 matrices, "
            "did you mean 'model.layers.1.mlp.up_proj'?",
        ),
        ({"include": ["zzz"]}, "include 'zzz' matches none of the 12 matrices"),
    ],
)
def test_a_glob_that_matches_nothing_is_an_error(keys, message):
    line = refusal(**keys)
    assert line.startswith(message)
    assert line.endswith(NAMES_HINT)


def test_a_model_without_matrices():
    assert refusal([], include=["*"]) == "include '*' matches none of the 0 matrices"


def test_a_rule_that_never_applies_is_an_error():
    rules = [{"match": "*.mlp.*", "pattern": "4:8"}, {"match": "*.down_proj", "skip": True}]
    assert refusal(targets=rules) == (
        "targets[1].match '*.down_proj': every matrix it matches is taken by an earlier rule, such as targets[0]; "
        "the first match wins, so put the narrower rule first"
    )
    assert isinstance(resolve(Recipe(targets=rules[::-1]), NAMES)["model.layers.0.mlp.down_proj"], Skipped)


def test_a_pattern_that_the_method_cannot_serve_names_the_matrix():
    rules = [{"match": "*.10.mlp.up_proj", "pattern": 0.5}]
    line = refusal(kind=PatternError, method="ria_cp", targets=rules)
    assert line.startswith(
        "model.layers.10.mlp.up_proj: permute step 'allocate' of method 'ria_cp' needs an N:M pattern"
    )
    skipped = resolve(Recipe(method="ria_cp", exclude=["*.10.*"], targets=rules), NAMES)
    assert skipped["model.layers.10.mlp.up_proj"] == Skipped("excluded by '*.10.*'")
