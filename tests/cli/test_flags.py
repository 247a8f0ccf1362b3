import inspect
import re
import typing
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from eggs_ptp.cli import flags
from eggs_ptp.cli.plan import plan
from eggs_ptp.cli.prune import prune
from eggs_ptp.errors import RecipeError
from eggs_ptp.recipe.recipe import Recipe


@dataclass(frozen=True)
class Sizes:
    """Two options."""

    width: Annotated[int, typer.Option("--width")] = 3
    heights: Annotated[list[int] | None, typer.Option("--height")] = None


def help_of(alias):
    return typing.get_args(alias)[1].help


def test_the_defaults_in_the_help_are_those_of_the_recipe():
    recipe = Recipe()
    documented = {
        name: re.search(r"Default: (.+)\.$", help_of(alias))[1]
        for name, alias in [("method", flags.Method), ("pattern", flags.Pattern), ("seed", flags.Seed)]
    }
    assert documented == {"method": recipe.method, "pattern": str(recipe.pattern), "seed": str(recipe.seed)}
    assert help_of(flags.NSamples) == f"Calibration windows. Default: {recipe.calibration.nsamples}."
    assert recipe.calibration.seqlen is None


def test_plan_has_the_options_of_prune():
    plan_options, prune_options = (inspect.signature(verb).parameters for verb in (plan, prune))
    of_prune_alone = {"output", "base_model", "overwrite", "context", "journal", "try_", "try_text"}
    assert set(prune_options) - set(plan_options) == of_prune_alone
    assert all(plan_options[name] == prune_options[name] for name in plan_options)


def test_a_dataclass_becomes_one_option_per_field():
    calls = []

    @flags.with_flags
    def verb(context: typer.Context, name: str, *, sizes: Sizes, loud: bool = False) -> None:
        calls.append((name, sizes, loud))

    app = typer.Typer()
    app.command()(verb)
    arguments = ["box", "--height", "1", "--height", "2", "--loud"]
    for command in (["box"], arguments):
        assert CliRunner().invoke(app, command).exit_code == 0
    assert calls == [("box", Sizes(), False), ("box", Sizes(3, [1, 2]), True)]
    assert CliRunner().invoke(app, ["box", "--width", "wide"]).exit_code == 2
    assert list(inspect.signature(verb).parameters) == ["context", "name", "width", "heights", "loud"]


def test_flags_override_the_file_and_set_overrides_both(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('seed = 3\npattern = "4:8"\n[calibration]\nnsamples = 7\n')
    recipe = flags.RecipeFlags(
        file=file, overrides=["steps.score.alpha=0.7"], seed=0, include=[], exclude=["*.down_proj"], nsamples=9
    ).recipe("steps.score.alpha=0.8")
    assert (recipe.seed, str(recipe.pattern), recipe.calibration.nsamples) == (0, "4:8", 9)
    assert (recipe.include, recipe.exclude) == ((), ("*.down_proj",))
    assert recipe.bound().steps["score"].options["alpha"] == 0.8


def test_the_old_name_of_an_option_is_an_alias_with_a_warning():
    assert flags.RecipeFlags(orders=flags.Permutation.mask).recipe().permutation == "mask"
    with pytest.warns(FutureWarning, match=r"^--orders is now --permutation$"):
        flags.renamed("--orders", "--permutation")(flags.Permutation.mask)
    assert flags.renamed("--orders", "--permutation")(None) is None


@pytest.mark.parametrize(("text", "count"), [("8GiB", 8 * 2**30), ("800MB", 800_000_000), (None, None)])
def test_memory_is_a_size(text, count):
    assert flags.RunFlags(memory=text).arguments()["memory"] == count


def test_a_memory_limit_that_is_not_a_size_is_refused():
    with pytest.raises(RecipeError, match="--memory: expected a size such as 8GiB or 800MB, got 'much'"):
        flags.RunFlags(memory="much").arguments()
