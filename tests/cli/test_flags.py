import inspect
import re
import typing

from eggs_ptp.cli import flags
from eggs_ptp.cli.plan import plan
from eggs_ptp.cli.prune import prune
from eggs_ptp.recipe.recipe import Recipe


def help_of(alias):
    return typing.get_args(alias)[1].help


def test_the_defaults_that_help_promises_are_the_recipes():
    recipe = Recipe()
    promised = {
        name: re.search(r"Default: (.+)\.$", help_of(alias))[1]
        for name, alias in [("method", flags.Method), ("pattern", flags.Pattern), ("seed", flags.Seed)]
    }
    assert promised == {"method": recipe.method, "pattern": recipe.pattern, "seed": str(recipe.seed)}
    assert help_of(flags.NSamples) == f"Calibration windows. Default: {recipe.calibration.nsamples}."
    assert recipe.calibration.seqlen is None


def test_plan_takes_what_prune_takes():
    ours, theirs = (inspect.signature(verb).parameters for verb in (plan, prune))
    assert set(theirs) - set(ours) == {"output", "overwrite", "context", "journal", "try_", "try_text"}
    assert all(ours[name] == theirs[name] for name in ours)


def test_flags_change_the_file_and_set_changes_both(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('seed = 3\npattern = "4:8"\n[calibration]\nnsamples = 7\n')
    recipe = flags.recipe_of(
        file, ["steps.score.alpha=0.7"], seed=0, pattern=None, include=[], exclude=["*.down_proj"], nsamples=9
    )
    assert (recipe.seed, recipe.pattern, recipe.calibration.nsamples) == (0, "4:8", 9)
    assert (recipe.include, recipe.exclude) == ((), ("*.down_proj",))
    assert recipe.bound().steps["score"].options["alpha"] == 0.7
