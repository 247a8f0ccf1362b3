"""Models without a family: what can be pruned block by block is, and what cannot be is refused in one line."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM
from untrusted import KINDS

import eggs_ptp
from eggs_ptp.engine.blocks.inputs import capture_block_inputs
from eggs_ptp.engine.blocks.run_block import BlockKwargs, StopForward, run_block
from eggs_ptp.engine.blocks.weights import loaded_weights
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CalibrationError, EggsError, ModelError
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 258, (3, 24), generator=torch.Generator().manual_seed(1))
UNKNOWN = r"model type 'untrusted' has no family here, and the blocks in model\.layers "


def _captured(folder, tokens=TOKENS):
    skeleton = load_skeleton(folder)
    reader = CheckpointReader(folder, ties=skeleton.ties)
    return skeleton, reader, *capture_block_inputs(skeleton, reader, tokens, torch.float32, CPU, batch=2)


def _prune(folder, output, text_file, **changes):
    calibration = CalibrationSpec(text=str(text_file), nsamples=8, seqlen=32)
    return eggs_ptp.prune(str(folder), output, Recipe(calibration=calibration, **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_run_one_by_one_give_the_models_hidden_states(tiny, kind):
    folder = tiny("untrusted", kind=kind)
    skeleton, reader, hidden, kwargs = _captured(folder)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder).eval().model(TOKENS)
        for index, block in enumerate(skeleton.blocks):
            with loaded_weights(block, skeleton.block_name(index), reader, torch.float32, CPU):
                hidden = run_block(block, hidden, kwargs[index])
    torch.testing.assert_close(hidden, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_can_be_run_are_pruned(tiny, tmp_path, text_file, kind):
    record = _prune(tiny("untrusted", kind=kind), tmp_path / "out", text_file, method="eggs+")
    assert eggs_ptp.verify(tmp_path / "out", str(tiny("untrusted", kind=kind))).failures == []
    inside = {matrix["name"].removeprefix("model.layers.1."): matrix.get("routed", False) for matrix in record.matrices}
    experts = {f"mlp.experts.{number}": True for number in range(3)} if kind == "experts" else {}
    assert {path: routed for path, routed in inside.items() if "model" not in path} == {
        "one": False,
        "two": False,
    } | experts


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:1], TOKENS[:1].repeat(2, 1)], ids=["several", "one", "equal"])
def test_arguments_that_depend_on_the_tokens_are_refused(tiny, tokens):
    message = UNKNOWN + "cannot be run one by one, as block 0 is given extra, which depends on the tokens; this needs a"
    with pytest.raises(ModelError, match=message):
        _captured(tiny("untrusted", kind="tokens"), tokens)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("between", r"cannot be run one by one, as the model changes the output of block 0 before it reaches block 1$"),
        ("deep", r"are not all given hidden states \(windows, tokens, channels\)$"),
    ],
)
def test_blocks_that_are_not_one_after_the_other_are_refused(tiny, kind, message):
    with pytest.raises(ModelError, match=UNKNOWN + message):
        _captured(tiny("untrusted", kind=kind))


@pytest.mark.parametrize("method", ["wanda", "eggs+", "eggs-max"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("masks", r"cannot be run one by one \(ValueError: a mask of \d was expected\)$"),
        ("mapping", r"were expected to return hidden states of shape \[\d, 32, 32\], got dict$"),
        ("narrow", r"were expected to return hidden states of shape \[\d, 32, 32\], got \[\d, 32, 16\]$"),
    ],
)
def test_a_block_that_cannot_be_called_is_refused_in_one_line(tiny, tmp_path, text_file, kind, message, method):
    with pytest.raises(ModelError, match=UNKNOWN + message):
        _prune(tiny("untrusted", kind=kind), tmp_path / "out", text_file, method=method)


def test_a_linear_called_with_some_tokens_is_not_compared(tiny, tmp_path, text_file):
    folder = tiny("untrusted", kind="few")
    with pytest.raises(
        CalibrationError, match=re.escape("one: the block calls this linear with other tokens") + ".*ex"
    ):
        _prune(folder, tmp_path / "out", text_file, method="eggs+")
    assert len(_prune(folder, tmp_path / "out", text_file, method="eggs").matrices) == 4


class _Failing(torch.nn.Module):
    def forward(self, _hidden, error):
        raise error


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("can't allocate memory"), CalibrationError("ours"), StopForward(), KeyError("a")],
)
def test_errors_that_are_not_the_blocks_pass(error):
    kwargs = BlockKwargs(error=error)
    kwargs.unknown_model = (
        "" if isinstance(error, KeyError) else "here: the blocks"
    )  # a block of a family: the fault is ours
    with pytest.raises(type(error)) as caught:
        run_block(_Failing(), torch.zeros(1, 1, 1), kwargs)
    assert caught.value is error
    if isinstance(error, KeyError):
        kwargs.unknown_model = "here: the blocks"
        with pytest.raises(EggsError, match=r"^here: the blocks cannot be run one by one \(KeyError: 'a'\)$"):
            run_block(_Failing(), torch.zeros(1, 1, 1), kwargs)


def test_changed_kwargs_still_name_the_unknown_model():
    kwargs = BlockKwargs(scale=2)
    kwargs.unknown_model = "the blocks of an unknown model"
    changed = BlockKwargs.map(kwargs, lambda value: -value)
    assert changed == {"scale": -2}
    with pytest.raises(ModelError, match=r"the blocks of an unknown model cannot be run one by one \(TypeError"):
        run_block(torch.nn.ReLU(), torch.ones(1), changed)
