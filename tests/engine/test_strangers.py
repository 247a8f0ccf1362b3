"""Models without a family: what can be pruned block by block is, and what cannot be is refused in one line."""

import re

import pytest
import torch
from stranger import KINDS
from transformers import AutoModelForCausalLM

import eggs_ptp
from eggs_ptp.engine.capture import capture
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.shards import Shards
from eggs_ptp.engine.through import Given, Signal, through
from eggs_ptp.errors import CalibrationError, EggsError, ModelError
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 258, (3, 24), generator=torch.Generator().manual_seed(1))
WHOSE = r"model type 'stranger' has no family here, and the blocks in model\.layers "


def _captured(folder, tokens=TOKENS):
    skeleton = load_skeleton(folder)
    shards = Shards(folder, ties=skeleton.ties)
    return skeleton, shards, *capture(skeleton, shards, tokens, torch.float32, CPU, batch=2)


def _prune(folder, output, text_file, **changes):
    calibration = CalibrationSpec(text=str(text_file), nsamples=8, seqlen=32)
    return eggs_ptp.prune(str(folder), output, Recipe(calibration=calibration, **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_run_one_by_one_give_the_models_hidden_states(tiny, kind):
    folder = tiny("stranger", kind=kind)
    skeleton, shards, hidden, kwargs = _captured(folder)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder).eval().model(TOKENS)
        for index, block in enumerate(skeleton.blocks):
            with resident(block, skeleton.block_name(index), shards, torch.float32, CPU):
                hidden = through(block, hidden, kwargs[index])
    torch.testing.assert_close(hidden, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_run_is_pruned(tiny, tmp_path, text_file, kind):
    record = _prune(tiny("stranger", kind=kind), tmp_path / "out", text_file, method="eggs+")
    assert eggs_ptp.verify(tmp_path / "out", str(tiny("stranger", kind=kind))).failures == []
    inside = {matrix["name"].removeprefix("model.layers.1."): matrix.get("routed", False) for matrix in record.matrices}
    experts = {f"mlp.experts.{number}": True for number in range(3)} if kind == "experts" else {}
    assert {path: routed for path, routed in inside.items() if "model" not in path} == {
        "one": False,
        "two": False,
    } | experts


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:1], TOKENS[:1].repeat(2, 1)], ids=["several", "one", "equal"])
def test_arguments_that_depend_on_the_tokens_are_refused(tiny, tokens):
    message = WHOSE + "cannot be run one by one, as block 0 is given extra, which depends on the tokens; this needs a"
    with pytest.raises(ModelError, match=message):
        _captured(tiny("stranger", kind="tokens"), tokens)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("between", r"cannot be run one by one, as the model changes what block 0 gives before it reaches block 1$"),
        ("deep", r"are not all given hidden states \(windows, tokens, hidden\)$"),
    ],
)
def test_blocks_that_are_not_one_after_the_other_are_refused(tiny, kind, message):
    with pytest.raises(ModelError, match=WHOSE + message):
        _captured(tiny("stranger", kind=kind))


@pytest.mark.parametrize("method", ["wanda", "eggs+", "eggs-max"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("masks", r"cannot be run one by one \(ValueError: a mask of \d was expected\)$"),
        ("mapping", r"were expected to give hidden states \[\d, 32, 32\], but gave dict$"),
        ("narrow", r"were expected to give hidden states \[\d, 32, 32\], but gave \[\d, 32, 16\]$"),
    ],
)
def test_a_block_that_cannot_be_called_is_refused_in_one_line(tiny, tmp_path, text_file, kind, message, method):
    with pytest.raises(ModelError, match=WHOSE + message):
        _prune(tiny("stranger", kind=kind), tmp_path / "out", text_file, method=method)


def test_a_linear_called_with_some_tokens_is_not_compared(tiny, tmp_path, text_file):
    folder = tiny("stranger", kind="few")
    with pytest.raises(
        CalibrationError, match=re.escape("one: the block calls this linear with other tokens") + ".*ex"
    ):
        _prune(folder, tmp_path / "out", text_file, method="eggs+")
    assert len(_prune(folder, tmp_path / "out", text_file, method="eggs").matrices) == 4


class _Failing(torch.nn.Module):
    def forward(self, _hidden, error):
        raise error


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't allocate memory"), CalibrationError("ours"), Signal(), KeyError("a")]
)
def test_what_is_no_fault_of_the_block_passes(error):
    given = Given(error=error)
    given.whose = "" if isinstance(error, KeyError) else "here: the blocks"  # a block of a family: the fault is ours
    with pytest.raises(type(error)) as caught:
        through(_Failing(), torch.zeros(1, 1, 1), given)
    assert caught.value is error
    if isinstance(error, KeyError):
        given.whose = "here: the blocks"
        with pytest.raises(EggsError, match=r"^here: the blocks cannot be run one by one \(KeyError: 'a'\)$"):
            through(_Failing(), torch.zeros(1, 1, 1), given)


def test_changed_arguments_still_say_whose_block_fails():
    given = Given(scale=2)
    given.whose = "the blocks of a stranger"
    changed = Given.each(given, lambda value: -value)
    assert changed == {"scale": -2}
    with pytest.raises(ModelError, match=r"the blocks of a stranger cannot be run one by one \(TypeError"):
        through(torch.nn.ReLU(), torch.ones(1), changed)
