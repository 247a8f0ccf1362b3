"""Methods: rows of steps that can be refilled, tuned, checked and written down."""

import re

import pytest

from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import MethodError, PatternError
from eggs_ptp.method.catalogue import METHODS
from eggs_ptp.method.method import Method
from eggs_ptp.method.step import Step

RIA_CP = METHODS["ria_cp"]


def method(**steps: Step) -> Method:
    return Method("mine", "Mine", "none", steps)


def test_replace_refills_empties_and_leaves_the_rest():
    changed = RIA_CP.replace(score=Step("wanda"), permute=None)
    assert changed.steps == {"score": Step("wanda"), "select": RIA_CP.steps["select"]}
    assert changed.name == "ria_cp"
    assert RIA_CP.steps["score"] == Step("ria")  # a row does not change


def test_with_options_tunes_the_step_that_is_there():
    for options in ({"alpha": 0.7}, {"name": "ria", "alpha": 0.7}):
        assert RIA_CP.with_options({"score": options}).steps["score"] == Step("ria", {"alpha": 0.7})
    tuned = RIA_CP.with_options({"permute": {"blocks": 2}}).steps["permute"]
    assert tuned == Step("allocate", {"assign": True, "blocks": 2})


def test_with_options_of_another_name_drops_the_old_options():
    assert METHODS["eggs"].with_options({"select": {"name": "top"}}).steps["select"] == Step("top")


def test_with_options_fills_and_empties_slots():
    assert "permute" not in RIA_CP.with_options({"permute": {"name": "none"}}).steps
    assert "permute" not in METHODS["ria"].with_options({"permute": {"name": "none"}}).steps
    assert METHODS["ria"].with_options({"permute": {"name": "allocate"}}).steps["permute"] == Step("allocate")


def test_options_without_a_step_are_refused():
    with pytest.raises(MethodError, match=r"steps\.permute: method 'ria' has no permute step, so give its name"):
        METHODS["ria"].with_options({"permute": {"assign": True}})


def test_the_steps_of_a_bound_method_are_in_the_order_of_the_slots():
    steps = {"select": Step("top"), "permute": Step("allocate"), "score": Step("wanda")}
    assert list(method(**steps).bind().steps) == ["score", "permute", "select"]


def test_statistics_are_the_union_of_what_the_steps_name(write_module):
    module = write_module("def f(score, pattern, gram, *, k=1): ...")
    assert method(score=Step("wanda"), select=Step(f"{module}:f")).bind().statistics == {"input_norm", "gram"}
    assert METHODS["magnitude"].bind().statistics == frozenset()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, "method 'mine' neither selects nor updates"),
        ({"score": Step("ria")}, "method 'mine' neither selects nor updates"),
        ({"select": Step("top")}, "steps.select: a select step needs a score step, and 'mine' has none"),
        ({"permute": Step("allocate")}, "steps.permute: a permute step needs a score step"),
        ({"score": Step("wnda"), "select": Step("top")}, "did you mean 'wanda'?"),
        ({"score": Step("ria"), "selct": Step("top")}, "steps.selct: no such slot"),
        ({"score": Step("ria", {"beta": 1}), "select": Step("top")}, "steps.score.beta"),
    ],
)
def test_steps_that_make_no_method_are_refused(steps, message):
    with pytest.raises(MethodError, match=re.escape(message)):
        method(**steps).bind()


def test_a_refine_step_needs_a_mask_to_start_from(write_module):
    module = write_module("def f(mask, score): ...\n\n\ndef u(weight, mask): ...")
    with pytest.raises(MethodError, match=r"steps\.refine: a refine step needs a select step"):
        method(score=Step("ria"), refine=Step(f"{module}:f"), update=Step(f"{module}:u")).bind()
    method(update=Step(f"{module}:u")).bind()  # while an update step may choose its own


def test_an_unstructured_pattern_is_refused_where_a_step_needs_groups():
    METHODS["wanda"].bind().check_pattern(Unstructured(0.5), "layers.0.q")
    METHODS["eggs"].bind().check_pattern(Pattern(2, 4), "layers.0.q")
    expander = METHODS["eggs"].replace(permute=None).bind()
    message = "layers.0.q: select step 'expander' of method 'eggs' needs an N:M pattern such as 2:4, not 0.5"
    with pytest.raises(PatternError, match=re.escape(message)):
        expander.check_pattern(Unstructured(0.5), "layers.0.q")
    with pytest.raises(PatternError, match=r"permute step 'allocate' of method 'ria_cp' needs an N:M pattern"):
        RIA_CP.bind().check_pattern(Unstructured(0.5), "layers.0.q")


def test_a_pattern_is_refused_where_a_step_needs_a_sparsity(write_module):
    module = write_module(
        "from eggs_ptp.core.pattern import Unstructured\n\n\ndef f(score, pattern: Unstructured): ..."
    )
    bound = method(score=Step("ria"), select=Step(f"{module}:f")).bind()
    bound.check_pattern(Unstructured(0.5), "layers.0.q")
    with pytest.raises(PatternError, match=r"of method 'mine' needs a sparsity such as 0\.5, not 2:4"):
        bound.check_pattern(Pattern(2, 4), "layers.0.q")
