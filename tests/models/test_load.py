"""Skeletons, whole models and tokenizers: loaded, or refused."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES
from untrusted import UntrustedConfig

import eggs_ptp
from eggs_ptp.errors import ModelError
from eggs_ptp.models.heads import Heads
from eggs_ptp.models.load import load_heads, load_model, load_skeleton, load_tokenizer


@pytest.fixture
def model(tiny, tmp_path):
    return shutil.copytree(tiny("llama"), tmp_path / "model")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_skeleton_has_the_structure_and_no_weights(tiny, model_type):
    skeleton = load_skeleton(tiny(model_type))
    assert skeleton.family.model_type == model_type
    assert len(skeleton.blocks) == 2
    assert skeleton.model.get_submodule(skeleton.block_name(1)) is skeleton.blocks[1]
    assert (skeleton.hidden_size, skeleton.context, skeleton.vocab_size) == (32, 128, 258)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert not any(buffer.is_meta for buffer in skeleton.model.buffers())  # such as rotary frequencies
    assert not any(parameter.requires_grad for parameter in skeleton.model.parameters())
    assert not skeleton.model.training
    assert skeleton.inner is skeleton.model.model


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tied_tensors_may_be_stored_under_the_other_name(tiny, model_type):
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    assert load_skeleton(tiny(model_type, tie=True)).ties == {head: embedding, embedding: head}
    assert load_skeleton(tiny(model_type)).ties == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no_such"}, "transformers cannot build this model (ValueError: The checkpoint you are trying"),
        ({"model_type": "t5"}, "t5 is an encoder-decoder model; eggs prunes decoder-only language models"),
        ({"model_type": "bert"}, "bert is an encoder; eggs prunes decoder-only language models"),
        ({"model_type": "gemma3"}, "gemma3 is a vision-language model; eggs prunes decoder-only language models"),
        ({"model_type": "llava"}, "llava is a vision-language model; eggs prunes decoder-only language models"),
        ({"model_type": "fuyu"}, "fuyu is a vision-language model; eggs prunes decoder-only language models"),
        ({"model_type": "emu3"}, "emu3 is a vision-language model; eggs prunes decoder-only language models"),
        ({"model_type": "moshi"}, "moshi is an audio-language model; eggs prunes decoder-only language models"),
        ({"model_type": "voxtral"}, "voxtral is an audio-language model; eggs prunes decoder-only language models"),
        ({"hidden_size": "wide"}, "cannot build this model (StrictDataclassFieldValidationError"),
        ({"hidden_act": "no_such"}, "transformers cannot build this model (KeyError"),
    ],
)
def test_a_config_that_describes_no_causal_model_is_refused(model, changes, message):
    edit(model, **changes)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        load_skeleton(model)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_whole_model_holds_the_stored_weights(tiny, model_type, tie):
    folder = tiny(model_type, tie=tie, dtype=torch.bfloat16)
    loaded = load_model(folder)
    assert not loaded.training
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert load_model(folder, dtype=torch.float32).dtype == torch.float32


def test_missing_weights_are_never_initialised(model):
    edit(model, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"the checkpoint lacks 9 tensors that config\.json requires, such as mo"):
        load_model(model)


def test_weights_of_another_shape_are_refused(model):
    edit(model, intermediate_size=96)
    with pytest.raises(ModelError, match="transformers cannot load this model") as caught:
        load_model(model)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_is_loaded_or_its_absence_named(model):
    assert load_tokenizer(model)("abc").input_ids == [64, 65, 66]
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer that transformers can load") as caught:
        load_tokenizer(model)
    assert "\n" not in str(caught.value)


def untrusted(folder, **settings):
    """Write a folder with a config and a few tensors, which is all that a skeleton needs."""
    folder.mkdir()
    UntrustedConfig(**settings).save_pretrained(folder)
    save_file({f"tensor{index}": torch.zeros(1) for index in range(4)}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hidden_size": None},
            "expected an integer as hidden_size of model type 'untrusted', got None in its config",
        ),
        (
            {"hidden_size": [32]},
            "expected an integer as hidden_size of model type 'untrusted', got [32] in its config",
        ),
        ({"kind": "headed"}, "its UntrustedForCausalLM has no 'trunk' that would be the model without its head, so"),
    ],
)
def test_a_model_without_a_required_attribute_is_refused(tmp_path, settings, message):
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path / 'model'}: {message}")):
        load_skeleton(untrusted(tmp_path / "model", **settings))


def test_heads_of_a_model_without_a_family_are_not_read(tmp_path):
    folder = untrusted(tmp_path / "model", num_attention_heads=3, num_key_value_heads=[2, 4], max_seq_len=-1)
    assert load_skeleton(folder).heads == load_heads(folder) == Heads(1, 1, 0)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt"])
def test_key_value_heads_that_the_model_type_does_not_read_are_ignored(tiny, tmp_path, name):
    folder = shutil.copytree(tiny(name), tmp_path / "model")
    edit(folder, num_key_value_heads=1)
    assert load_skeleton(folder).heads == load_heads(folder) == load_heads(tiny(name))
    eggs_ptp.prune(str(folder), tmp_path / "out", method="magnitude")
