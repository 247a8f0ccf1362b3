from pathlib import Path

import pytest

from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import RecipeError
from eggs_ptp.recipe.read import read_recipe

GOOD = """\
seed = 4
pattern = "4:8"
method = "ria"

[steps]
score = { name = "ria", alpha = 0.25 }

[calibration]
text = "file.jsonl"
nsamples = 64

[[targets]]
match = "*.mlp.down_proj"
pattern = 0.5

[[targets]]
match = "model.layers.0.*"
skip = true
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "recipe.toml"


def refusal(path, *overrides, text=None, **flags):
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_arguments_give_the_default_recipe():
    assert read_recipe().pattern == Pattern(2, 4)


def test_a_file(path):
    path.write_text("\ufeff" + GOOD, encoding="utf-8")
    recipe = read_recipe(path)
    assert (recipe.seed, recipe.pattern, recipe.method) == (4, Pattern(4, 8), "ria")
    assert recipe.bound().steps["score"].options == {"alpha": 0.25}
    assert (recipe.calibration.text, recipe.calibration.nsamples) == ("file.jsonl", 64)
    assert [(rule.match, rule.pattern, rule.skip) for rule in recipe.targets] == [
        ("*.mlp.down_proj", Unstructured(0.5), False),
        ("model.layers.0.*", None, True),
    ]


def test_flags_override_the_file_and_set_overrides_both(path):
    path.write_text(GOOD)
    recipe = read_recipe(path, ["seed=6", "calibration.seqlen=32"], seed=5, pattern="1:4", nsamples=7, seqlen=16)
    assert (recipe.seed, recipe.pattern, recipe.method) == (6, Pattern(1, 4), "ria")
    assert (recipe.calibration.text, recipe.calibration.nsamples, recipe.calibration.seqlen) == ("file.jsonl", 7, 32)


def test_flags_that_were_not_given_change_nothing(path):
    path.write_text(GOOD)
    assert read_recipe(path, seed=None, pattern=None, calibration=None, include=None) == read_recipe(path)


def test_the_calibration_flags():
    recipe = read_recipe(
        calibration=Path("a.txt"), nsamples=2, seqlen=8, sampling="documents", text_field="body", begin="never"
    )
    assert recipe.calibration.model_dump() == {
        "text": "a.txt",
        "nsamples": 2,
        "seqlen": 8,
        "seed": None,
        "sampling": "documents",
        "begin": "never",
        "text_field": "body",
        "statistics": None,
        "propagate": "pruned",
        "skip_first": 0,
        "massive": None,
    }
    assert read_recipe(include=["a"], exclude=("b", "c")).exclude == ("b", "c")


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("steps.score.alpha=0.7", lambda recipe: recipe.steps["score"]["alpha"], 0.7),
        ("calibration.nsamples=64", lambda recipe: recipe.calibration.nsamples, 64),
        ("pattern=4:8", lambda recipe: recipe.pattern, Pattern(4, 8)),
        ("pattern=12:16", lambda recipe: recipe.pattern, Pattern(12, 16)),
        ("pattern=0.5", lambda recipe: recipe.pattern, Unstructured(0.5)),
        (" method = ria-cp ", lambda recipe: recipe.method, "ria_cp"),
        ("calibration.text=a=b.txt", lambda recipe: recipe.calibration.text, "a=b.txt"),
        ("calibration.text=2024-01-01", lambda recipe: recipe.calibration.text, "2024-01-01"),
        ("calibration.text='2'", lambda recipe: recipe.calibration.text, "2"),
        ("exclude=['a', 'b']", lambda recipe: recipe.exclude, ("a", "b")),
        ("targets=[{match='a', skip=true}]", lambda recipe: recipe.targets[0].skip, True),
        ("steps.score=wanda", lambda recipe: recipe.steps["score"], {"name": "wanda"}),
    ],
)
def test_set(override, read, value):
    assert read(read_recipe(None, [override], method="ria")) == value


def test_a_value_cannot_contain_another_key():
    assert read_recipe(None, ["calibration.text=1\nseed = 3"]).seed == 0


def test_set_changes_options_of_a_step_that_the_file_only_names(path):
    path.write_text('method = "wanda"\nsteps.score = "ria"\n')
    assert read_recipe(path, ["steps.score.alpha=1.0"]).steps["score"] == {"name": "ria", "alpha": 1.0}


@pytest.mark.parametrize("override", ["pattern", "=3", ".seed=3", "steps..alpha=3", ""])
def test_overrides_that_are_not_key_value_are_refused(override):
    message = f"--set {override!r}: expected KEY=VALUE, such as steps.score.alpha=0.7"
    assert refusal(None, override) == message


def test_overrides_into_a_value_that_is_no_table_are_refused(path):
    line = refusal(path, "calibration.text.x=3", text=GOOD)
    assert line == "--set calibration.text.x: calibration.text is 'file.jsonl', not a table"
    assert refusal(path, nsamples=3, text="calibration = 3") == "--nsamples: calibration is 3, not a table"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"pattern": "4:2"}, "pattern 4:2 keeps 4 of 2: "),
        ({"pattern": "0:4"}, "pattern 0:4 keeps 0 of 4: "),
        ({"pattern": "two:four"}, "pattern 'two:four' is not understood: "),
        ({"method": "egs"}, "method: no method is named 'egs', did you mean 'eggs'?"),
        ({"seed": "x"}, "seed: expected a valid integer, got 'x'"),
        ({"nsamples": 0}, "calibration.nsamples: expected greater than or equal to 1, got 0"),
        ({"prune_method": "ria"}, "prune_method: unknown key, did you mean 'method'?"),
        ({"nsample": 3}, "nsample: unknown key, did you mean 'calibration.nsamples'?"),
    ],
)
def test_bad_flags_name_the_key_and_no_file(path, flags, message):
    path.write_text('method = "ria"')
    assert refusal(path, **flags).startswith(message)


def test_bad_overrides_name_the_key_and_no_file(path):
    assert refusal(path, "steps.score.alpha=high", text=GOOD).startswith("steps.score.alpha: 'high' is not possible")
    assert refusal(path, "targets=[{match='a'}]", text=GOOD).startswith("targets[0]: the rule for 'a' changes nothing")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ('"4:8"', '"8:4"', 2, "pattern 8:4 keeps 8 of 4: "),
        ('"4:8"', "48", 2, "pattern: sparsity 48 is not between 0 and 1: "),
        ("seed = 4", "seed = 4.5", 1, "seed: expected a valid integer, got 4.5"),
        ("seed = 4", "sead = 4", 1, "sead: unknown key, did you mean 'seed'?"),
        ("0.25", '"high"', 6, "steps.score.alpha: 'high' is not possible: "),
        ("[steps]", "[steps]\nscor = 3", 6, "steps.scor: unknown key, did you mean 'score'?"),
        ("nsamples = 64", "nsample = 64", 10, "calibration.nsample: unknown key, did you mean 'nsamples'?"),
        ("[calibration]", "[calibraton]", 8, "calibraton: unknown key, did you mean 'calibration'?"),
        ("pattern = 0.5", "pattern = 2", 14, "targets[0].pattern: sparsity 2 is not between 0 and 1: "),
        ("skip = true", "skip = 1", 18, "targets[1].skip: expected a valid boolean, got 1"),
        ("skip = true", "", 16, "targets[1]: the rule for 'model.layers.0.*' changes nothing; "),
        ("skip = true", "[targets.steps.score]\nalpha = []", 19, "targets[1].steps.score.alpha: [] is not possible: "),
        ('match = "model.layers.0.*"', "", 16, "targets[1].match: is missing"),
        ("nsamples = 64", "'nsamples' = 0", 10, "calibration.nsamples: expected greater than or equal to 1, got 0"),
        ('pattern = "4:8"', "include = [\n1,\n]", 2, "include[0]: expected a valid string, got 1"),
    ],
)
def test_bad_files_name_the_file_the_line_and_the_key(path, old, new, line, message):
    assert old in GOOD
    error = refusal(path, text=GOOD.replace(old, new, 1))
    assert error.startswith(f"recipe {path}, line {line}: {message}")


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("seed = 1\nmethod = \n", "line 2, column 10"),
        ("seed = 1\nseed = 2\n", "line 2, column 9"),
        ("seed", "line 1, column 5"),
        ('seed = 1\r\n\r\nmethod = """a', "line 3, column 14"),
        ("pattern = 2:4\n", "line 1, column 12"),
    ],
)
def test_broken_toml_names_line_and_column(path, text, position):
    path.write_bytes(text.encode())
    line = refusal(path)
    assert line.startswith(f"recipe {path}, {position}: not TOML: ")
    assert "(at " not in line


def test_a_pattern_without_quotes_is_explained(path):
    line = refusal(path, text='method = "ria"\npattern = 2:4\n')
    assert line.endswith('; a pattern is a string, so write pattern = "2:4"')


def test_files_that_cannot_be_read(path, tmp_path):
    assert refusal(path) == f"recipe {path} cannot be read: No such file or directory"
    assert refusal(tmp_path) == f"recipe {tmp_path} cannot be read: Is a directory"
    path.write_bytes(b'method = "\xff"')
    assert refusal(path) == f"recipe {path} is not UTF-8: byte 0xff at offset 10; save it as UTF-8"


def test_an_unknown_list_of_tables_is_named_with_its_line(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('method = "ria"\n\n[[rules]]\nmatch = "*"\n', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"recipe\.toml, line 3: rules: unknown key; known: seed, ") as caught:
        read_recipe(path)
    assert "did you mean" not in str(caught.value)


def test_a_pipeline_is_a_list_of_tables_or_of_names(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'method = "ria_cp"\n[[steps.update]]\nname = "sparsegpt"\n[[steps.update]]\nname = "pcg"\niterations = 5\n'
    )
    recipe = read_recipe(path)
    assert recipe.steps == {"update": [{"name": "sparsegpt"}, {"name": "pcg", "iterations": 5}]}
    named = read_recipe(None, ['steps.update=["sparsegpt", "pcg"]'], method="ria_cp")
    assert [step.name for step in named.bound().steps["update"].bound_steps] == ["sparsegpt", "pcg"]
    path.write_text(path.read_text().replace("= 5", "= -5"))
    with pytest.raises(RecipeError, match=r"line 6: steps\.update\[1\]\.iterations: -5 is not possible"):
        read_recipe(path)
