"""A block tuned as a whole, and weights corrected for drift, within a run."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eggs_ptp
from eggs_ptp.errors import RecipeError
from eggs_ptp.recipe.recipe import Recipe

WINDOWS = torch.randint(0, 258, (8, 32), generator=torch.Generator().manual_seed(1))
QUICK = {"tune": {"name": "adam", "epochs": 2.0}}


@pytest.fixture
def pruned(tiny, tmp_path):
    np.save(tmp_path / "windows.npy", WINDOWS.numpy())

    def prune(name, model="llama", **settings):
        source, out = tiny(model), tmp_path / name
        record = eggs_ptp.prune(
            str(source), out, calibration=str(tmp_path / "windows.npy"), seqlen=32, nsamples=8, **settings
        )
        return source, out, record

    return prune


def _losses(record):
    return {
        matrix["name"].rsplit(".self_attn", 1)[0].rsplit(".mlp", 1)[0]: matrix["tune"] for matrix in record.matrices
    }


@pytest.mark.parametrize("model", ["llama", "qwen2"])  # qwen2 has biases
def test_tuning_lowers_the_loss_and_keeps_masks_and_proof(pruned, model):
    _, plain, _ = pruned("plain", model, method="ria_cp")
    source, out, record = pruned("tuned", model, method="ria_cp", steps=QUICK)
    for diagnostics in _losses(record).values():
        assert diagnostics["loss_after"] < diagnostics["loss_before"]
    before, after = load_file(plain / "model.safetensors"), load_file(out / "model.safetensors")
    first = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(before[first], after[first])
    for name in (matrix["name"] for matrix in record.matrices if ".0." in matrix["name"]):
        assert torch.equal(before[f"{name}.weight"] != 0, after[f"{name}.weight"] != 0)
    verification = eggs_ptp.verify(out, against=str(source))
    assert verification.ok, verification.failures
    biases = {name for name in after if name.endswith("proj.bias")}
    assert set(json.loads((out / "eggs.json").read_text())["tuned"]) == biases
    assert bool(biases) == (model == "qwen2")


def test_tuning_repeats_itself(pruned):
    _, one, _ = pruned("one", method="wanda", steps=QUICK)
    _, two, _ = pruned("two", method="wanda", steps=QUICK)
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_method_without_statistics_can_be_tuned(pruned):
    source, out, record = pruned("magnitude", method="magnitude", steps=QUICK)
    assert all(diagnostics["steps"] > 0 for diagnostics in _losses(record).values())
    assert eggs_ptp.verify(out, against=str(source)).ok


def test_two_tune_steps_for_one_block_are_refused(pruned):
    rule = {"match": "*.down_proj", "steps": {"tune": {"name": "adam", "epochs": 1.0}}}
    with pytest.raises(RecipeError, match=r"tune step differs.*same steps\.tune"):
        pruned("refused", method="ria", steps=QUICK, targets=[rule])


def test_correcting_for_drift_brings_the_last_block_nearer_to_the_dense_model(pruned, tiny):
    """What it is for: the pruned model's hidden states are nearer to the dense model's, on windows it has seen."""
    from transformers import AutoModelForCausalLM

    source, plain, _ = pruned("plain", method="ria_cp+pcg")
    _, corrected, _ = pruned("corrected", method="ria_cp+pcg+drift")
    assert eggs_ptp.verify(corrected, against=str(source)).ok

    def logits(folder):
        with torch.no_grad():
            return AutoModelForCausalLM.from_pretrained(folder).double()(WINDOWS).logits

    dense = logits(source)
    assert (logits(corrected) - dense).square().sum() < 0.9 * (logits(plain) - dense).square().sum()


def test_a_drift_share_of_nothing_changes_nothing(pruned):
    _, one, _ = pruned("one", method="ria_cp+pcg")
    _, two, _ = pruned("two", method="ria_cp+pcg", steps={"correct": {"name": "drift", "share": 0.0}})
    first = "model.layers.0.self_attn.q_proj.weight"  # behind it nothing is pruned, however often it is observed
    assert torch.equal(load_file(one / "model.safetensors")[first], load_file(two / "model.safetensors")[first])


def test_the_dense_stream_as_input_contradicts_a_comparison_with_it():
    with pytest.raises(RecipeError, match=r"steps\.correct.*propagate"):
        Recipe(method="ria_cp+drift", calibration={"propagate": "dense"})
