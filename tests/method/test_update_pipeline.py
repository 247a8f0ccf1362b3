"""Update pipelines in methods, records and runs."""

import json
import re
import sys

import pytest
import torch
from torch.testing import assert_close

from eggs_ptp.core.mask import satisfies
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import MethodError, PatternError
from eggs_ptp.method.apply import Job, prune_consumers
from eggs_ptp.method.catalogue import METHODS, find_method
from eggs_ptp.method.method import Method
from eggs_ptp.method.step import BoundStep, Step
from eggs_ptp.method.update_pipeline import BoundUpdatePipeline, UpdatePipeline

WEIGHT = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
X = torch.randn(400, 16, generator=torch.Generator().manual_seed(2)) @ torch.randn(
    16, 16, generator=torch.Generator().manual_seed(3)
)
STATISTICS = {"gram": X.T @ X / 400, "tokens": torch.tensor(4000.0), "input_norm": X.square().mean(0).sqrt()}
STATISTICS["cross"] = WEIGHT @ STATISTICS["gram"]  # no drift
OWN_STEPS = """
from eggs_ptp.core.step_result import StepResult


def first(weight, mask, start, pattern):
    first.seen = weight, mask, start
    return StepResult((weight * 2, torch.arange(weight.shape[1]).expand(weight.shape) % 4 < 2), {"a": 1, "b": 1})


def second(weight, mask, start, input_norm):
    second.seen = weight, mask, start
    return weight * 3, mask


def third(start, mask, gram):
    return StepResult((start + 1, mask), {"b": 2})
"""


def pruned(method: Method, mask=None):
    job = Job("m", WEIGHT, Pattern(2, 4), method.bind(given_mask=mask is not None), mask=mask)
    return prune_consumers([job], lambda _, name: STATISTICS[name], seed=0)["m"]


def loss(result) -> float:
    change = WEIGHT - result.weight
    return float((change @ STATISTICS["gram"] * change).sum())


def test_a_statistic_is_read_once_for_all_steps():
    names = []
    job = Job("m", WEIGHT, Pattern(2, 4), find_method("wanda+reselect+connect").bind())
    prune_consumers([job], lambda _, name: names.append(name) or STATISTICS[name], seed=0)
    assert sorted(names) == ["gram", "input_norm", "tokens"]


def test_every_step_starts_from_the_result_of_the_previous_one(write_module):
    module = write_module(OWN_STEPS)
    pipeline = UpdatePipeline(tuple(Step(f"{module}:{name}") for name in ("first", "second", "third")))
    chosen = METHODS["wanda"].replace(update=pipeline)
    result = pruned(chosen)
    functions = sys.modules[module]
    dense, mask, start = functions.first.seen
    assert torch.equal(dense, WEIGHT)
    assert start is None
    assert torch.equal(mask, pruned(METHODS["wanda"]).mask)
    dense, mask, start = functions.second.seen
    assert torch.equal(dense, WEIGHT)
    assert torch.equal(start, WEIGHT * 2)
    assert torch.equal(mask, result.mask)
    assert torch.equal(result.weight, torch.where(result.mask, WEIGHT * 3 + 1, 0.0))
    assert result.diagnostics == {"a": 1, "b": 2}


def test_a_pipeline_takes_the_data_that_its_steps_take(write_module):
    module = write_module(OWN_STEPS)
    pipeline = UpdatePipeline(tuple(Step(f"{module}:{name}") for name in ("first", "second", "third"))).bind("update")
    assert isinstance(pipeline, BoundUpdatePipeline)
    assert pipeline.data == ("weight", "mask", "start", "pattern", "input_norm", "gram")
    assert pipeline.statistics == {"input_norm", "gram"}
    assert [type(step) for step in pipeline.bound_steps] == [BoundStep] * 3
    method = METHODS["wanda"].replace(update=UpdatePipeline((Step("sparsegpt"), Step("pcg")))).bind()
    assert [step.name for step in method.bound_steps] == ["wanda", "top", "sparsegpt", "pcg"]


def test_a_single_step_has_no_start(write_module):
    module = write_module(OWN_STEPS)
    pruned(METHODS["wanda"].replace(update=Step(f"{module}:second")))
    assert sys.modules[module].second.seen[2] is None


def test_pcg_after_sparsegpt_keeps_its_mask_and_lowers_its_loss():
    swept = pruned(find_method("sparsegpt"))
    solved = pruned(find_method("sparsegpt+pcg"))
    assert torch.equal(solved.mask, swept.mask)
    assert loss(solved) < 0.98 * loss(swept)
    thorough = find_method("sparsegpt+pcg").with_options({"update": {"iterations": 200, "tolerance": 0.0}})
    alone = find_method("wanda+pcg").with_options({"update": {"iterations": 200, "tolerance": 0.0}})
    # Where both have converged it does not matter where they started.
    assert_close(pruned(thorough).weight, pruned(alone, mask=swept.mask).weight, rtol=1e-3, atol=1e-4)


def test_a_given_mask_is_kept_by_a_pipeline():
    mask = pruned(METHODS["wanda"]).mask
    result = pruned(find_method("sparsegpt+pcg"), mask=mask)
    assert torch.equal(result.mask, mask)


@pytest.mark.parametrize("method", ["eggs+", "eggs-max", "alps+connect+pcg"])
def test_pipelines_after_a_permutation_satisfy_the_pattern_in_permuted_columns(method):
    result = pruned(find_method(method))
    permutation = torch.arange(16) if result.permutation is None else result.permutation
    assert satisfies(result.mask[:, permutation], Pattern(2, 4))
    assert {"B", "layer_loss"} <= result.diagnostics.keys()
    assert loss(result) < loss(pruned(METHODS["ria_cp"]))


def test_a_list_replaces_the_step_by_a_pipeline_and_reads_back():
    tables = [{"name": "sparsegpt", "damping": 0.1}, {"name": "pcg"}]
    method = METHODS["alps"].with_options({"update": tables})
    assert method.steps["update"] == UpdatePipeline((Step("sparsegpt", {"damping": 0.1}), Step("pcg")))
    record = json.loads(json.dumps(method.to_dict()))["steps"]
    assert [step["name"] for step in record["update"]] == ["sparsegpt", "pcg"]
    assert record["update"][1]["iterations"] == 20
    again = Method("again", "", "").with_options(record)
    assert again.to_dict()["steps"] == record
    assert METHODS["alps"].with_options({"update": tables[1:]}).steps["update"] == Step("pcg")


def test_options_are_changed_in_every_step_that_has_them():
    changed = find_method("sparsegpt+pcg").with_options({"update": {"damping": 0.1, "iterations": 3}}).bind()
    swept, solved = changed.steps["update"].bound_steps
    assert (swept.options["damping"], solved.options["damping"], solved.options["iterations"]) == (0.1, 0.1, 3)
    assert find_method("eggs+").with_options({"update": {"name": "alps"}}).steps["update"] == Step("alps")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"update": {"rho": 1}}, "steps.update.rho: no step of the pipeline 'sparsegpt+pcg' has an option 'rho'"),
        ({"update": []}, "steps.update: expected the steps of a pipeline, got none"),
        ({"update": [{"damping": 1}]}, "steps.update[0]: a step of a pipeline needs its name, got {'damping': 1}"),
        (
            {"update": [{"name": "pcg"}, {"name": "pcq"}]},
            "steps.update[1]: no update step is named 'pcq', did you mean 'pcg'?",
        ),
        (
            {"update": [{"name": "pcg"}, {"name": "pcg", "iterations": -1}]},
            "steps.update[1].iterations: -1 is not possible",
        ),
        ({"select": [{"name": "top"}, {"name": "top"}]}, "steps.select: expected one step, got 'top+top'"),
    ],
)
def test_impossible_pipelines_are_refused(steps, message):
    with pytest.raises(MethodError, match=re.escape(message)):
        find_method("sparsegpt+pcg").with_options(steps).bind()


def test_the_step_that_does_not_serve_a_pattern_is_named():
    bound = find_method("sparsegpt+connect+pcg").bind()
    assert bound.steps["update"].patterns is Pattern
    with pytest.raises(PatternError, match="x: update step 'connect' of method 'sparsegpt\\+connect\\+pcg' needs an N"):
        bound.check_pattern(Unstructured(0.5), "x")
    find_method("sparsegpt+reselect+pcg").bind().check_pattern(Unstructured(0.5), "x")


@pytest.mark.parametrize(
    ("name", "update"),
    [
        ("sparsegpt+pcg", "sparsegpt+pcg"),
        ("alps+pcg", "alps+pcg"),
        ("alps+connect+pcg", "alps+connect+pcg"),
        ("ria_cp+sparsegpt+pcg", "sparsegpt+pcg"),
        ("ria+pcg", "pcg"),
        ("sparsegpt+pcg+pcg", "sparsegpt+pcg"),
        ("sparsegpt+alps", "alps"),
        ("ria+pcg+sparsegpt", "sparsegpt"),
        ("eggs++alps", "alps"),
        ("alps+eggs+", "reselect+connect"),
        ("eggs+pcg", "pcg"),
    ],
)
def test_a_step_that_takes_start_is_appended_and_any_other_replaces(name, update):
    assert find_method(name).steps["update"].name == update


@pytest.mark.parametrize(
    ("written", "row"),
    [
        ("eggs+", "eggs+"),
        ("EGGS_plus", "eggs+"),
        ("eggs-plus", "eggs+"),
        (" eggs+ ", "eggs+"),
        ("eggs_max", "eggs-max"),
    ],
)
def test_presets_are_found_by_any_spelling_of_their_name(written, row):
    assert find_method(written) is METHODS[row]


def test_a_plus_at_the_end_belongs_to_the_preset_and_further_ones_extend_it():
    assert find_method("eggs+pcg").steps["select"].name == "expander"
    assert find_method("eggs++wanda").steps == {**METHODS["eggs+"].steps, "score": Step("wanda")}
    assert find_method("eggs+ + wanda").name == "eggs++wanda"
    with pytest.raises(MethodError, match="'' is neither a step nor a method"):
        find_method("ria+")
