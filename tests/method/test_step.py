"""Steps: looked up by name, options checked against the signature, data by the names of the parameters."""

import re

import pytest
import torch

from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.errors import MethodError
from eggs_ptp.method.step import SLOTS, Step, names


def test_steps_are_the_public_files_of_a_slot():
    assert {"magnitude", "ri", "ria", "wanda"} <= set(names("score"))
    assert {"expander", "top"} <= set(names("select"))
    assert "allocate" in names("permute")
    assert not any(name.startswith("_") for slot in SLOTS for name in names(slot))


def test_positional_parameters_are_the_data_and_keyword_only_ones_the_options():
    bound = Step("ria", {"alpha": 0.7}).bind("score")
    assert (bound.slot, bound.name) == ("score", "ria")
    assert bound.data == ("weight", "input_norm")
    assert bound.statistics == {"input_norm"}
    assert bound.options == {"alpha": 0.7}
    assert Step("magnitude").bind("score").statistics == frozenset()


def test_defaults_are_spelled_out():
    assert Step("ria").bind("score").options == {"alpha": 0.5}
    options = Step("top", {"group": "layer"}).bind("select").options
    assert {"group": "layer", "count": "exact"}.items() <= options.items()


def test_a_bound_step_calls_its_function_with_the_data_that_it_names():
    weight = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    norm = torch.tensor([4.0, 9.0])
    score = Step("ria", {"alpha": 0.5}).bind("score")({"weight": weight, "input_norm": norm}.__getitem__)
    columns, rows = torch.tensor([4.0, 6.0]), torch.tensor([[3.0], [7.0]])
    torch.testing.assert_close(score, (weight.abs() / columns + weight.abs() / rows) * torch.tensor([2.0, 3.0]))


def test_a_pattern_annotation_says_which_kind_is_possible(write_module):
    assert Step("expander").bind("select").patterns is Pattern
    assert Step("allocate").bind("permute").patterns is Pattern
    assert Step("top").bind("select").patterns is None
    assert Step("magnitude").bind("score").patterns is None
    module = write_module(
        "from eggs_ptp.core.pattern import Unstructured\n\n\ndef f(score, pattern: Unstructured): ..."
    )
    assert Step(f"{module}:f").bind("select").patterns is Unstructured


def test_with_options_changes_some_and_keeps_the_others():
    step = Step("expander", {"B": 3, "diagonal": "best"}).with_options(B=1)
    assert step == Step("expander", {"B": 1, "diagonal": "best"})


@pytest.mark.parametrize(
    ("slot", "name", "message"),
    [
        ("score", "wnda", "steps.score: no score step is named 'wnda', did you mean 'wanda'?; known: "),
        ("select", "xyzzy", "steps.select: no select step is named 'xyzzy'; known: "),
        ("select", "_blocks", "no select step is named '_blocks'"),
        ("select", "wanda", "no select step is named 'wanda'"),
        (
            "scor",
            "ria",
            "steps.scor: no such slot, expected one of correct, score, permute, select, refine, update, tune",
        ),
        ("score", "x:", "no score step is named 'x:'"),
        ("score", "no_such_package.x:f", "'no_such_package.x:f' cannot be imported (ModuleNotFoundError"),
        ("score", "math:sinus", "'math:sinus' cannot be imported (AttributeError"),
        ("score", ":f", "':f' cannot be imported"),
        ("score", ".near:f", "'.near:f' cannot be imported"),
        ("score", "math:pi", "'math:pi' is not a Python function, but of type float"),
        ("score", "os:environ", "'os:environ' is not a Python function"),
    ],
)
def test_a_step_that_cannot_be_found_is_named(slot, name, message):
    with pytest.raises(MethodError, match=re.escape(message)):
        Step(name).bind(slot)


@pytest.mark.parametrize(
    ("slot", "name", "options", "message"),
    [
        ("score", "ria", {"aplha": 1}, "steps.score.aplha: score step 'ria' has no option 'aplha', did you mean 'alp"),
        ("score", "magnitude", {"alpha": 1}, "steps.score.alpha: score step 'magnitude' has no option 'alpha'"),
        ("score", "ria", {"weight": 1}, "has no option 'weight'"),
        ("score", "ria", {"alpha": -0.1}, "steps.score.alpha: -0.1 is not possible"),
        ("score", "ria", {"alpha": "0.5"}, "steps.score.alpha: '0.5' is not possible"),
        ("score", "ria", {"alpha": True}, "steps.score.alpha: True is not possible"),
        ("score", "ria", {"alpha": float("nan")}, "steps.score.alpha: nan is not possible"),
        ("select", "expander", {"B": -1}, "steps.select.B: -1 is not possible"),
        ("select", "expander", {"B": 2.0}, "steps.select.B: 2.0 is not possible"),
        ("select", "expander", {"B": True}, "steps.select.B: True is not possible"),
        ("select", "expander", {"B": "most"}, "steps.select.B: 'most' is not possible"),
        ("select", "expander", {"diagonal": "circular"}, "steps.select.diagonal: 'circular' is not possible"),
        ("select", "top", {"group": None}, "steps.select.group: None is not possible"),
        ("permute", "allocate", {"blocks": 0}, "steps.permute.blocks: 0 is not possible"),
        ("permute", "allocate", {"sparsity": 1.0}, "steps.permute.sparsity: 1.0 is not possible"),
    ],
)
def test_an_option_that_is_not_possible_is_named(slot, name, options, message):
    with pytest.raises(MethodError, match=re.escape(message)) as caught:
        Step(name, options).bind(slot)
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_possible_where_numbers_are():
    assert Step("ria", {"alpha": 1}).bind("score").options == {"alpha": 1.0}


def test_an_own_function_is_bound_like_the_packages(write_module):
    module = write_module(
        "def cubed(weight: Tensor, input_var: Tensor, *, power: int = 3) -> Tensor:\n    return weight**power"
    )
    bound = Step(f"{module}:cubed", {"power": 2}).bind("score")
    assert bound.name == f"{module}:cubed"
    assert bound.data == ("weight", "input_var")
    assert bound({"weight": torch.tensor(3.0), "input_var": None}.__getitem__) == 9.0
    with pytest.raises(MethodError, match="has no option 'powr', did you mean 'power'"):
        Step(f"{module}:cubed", {"powr": 2}).bind("score")


def test_an_own_function_without_annotations_is_bound(write_module):
    module = write_module("def f(score, pattern, *, any=1):\n    return score")
    bound = Step(f"{module}:f", {"any": "thing"}).bind("select")
    assert bound.options == {"any": "thing"}
    assert bound.patterns is None
    assert bound({"score": 5, "pattern": Pattern(2, 4)}.__getitem__) == 5


@pytest.mark.parametrize(
    ("slot", "source", "message"),
    [
        ("score", "def f(score): ...", "parameter 'score' is no data that a score step can have"),
        ("score", "def f(weight, alpha=1): ...", "parameter 'alpha' is no data"),
        ("permute", "def f(score, weight): ...", "parameter 'weight' is no data that a permute step can have"),
        ("permute", "def f(score, input_norm): ...", "parameter 'input_norm' is no data that a permute step can have"),
        ("select", "def f(mask): ...", "parameter 'mask' is no data that a select step can have"),
        ("refine", "def f(mask, permutation): ...", "(expected some of generator, gram, "),
        ("update", "def f(weight, mask, score): ...", "parameter 'score' is no data"),
        ("score", "def f(weight, *more): ...", "parameter 'more' is no data"),
        ("score", "def f(weight, **more): ...", "parameter 'more' is no data"),
        ("score", "def f(weight, *, alpha): ...", "option 'alpha' has no default"),
        ("score", "def f(weight: 'Nowhere'): ...", "an annotation cannot be resolved at run time (name 'Nowhere'"),
        ("score", "def f(:", "cannot be imported (SyntaxError"),
        ("score", "raise RuntimeError('no licence')", "cannot be imported (RuntimeError: no licence)"),
    ],
)
def test_an_own_function_that_does_not_fit_its_slot_is_refused(write_module, slot, source, message):
    with pytest.raises(MethodError, match=re.escape(message)):
        Step(f"{write_module(source)}:f").bind(slot)
