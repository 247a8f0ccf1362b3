"""Adapters of the base model on a folded one: permuted, they do what they do without the fold, which can be undone."""

import json

import pytest
import torch
from lora import logits, write_adapter
from safetensors.torch import load_file

import eggs_ptp
from eggs_ptp.checkpoint.packed import export
from eggs_ptp.checkpoint.staging import MANIFEST, ORDERS
from eggs_ptp.core.permutation import identity

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODELS = {
    "grouped": ("llama", {}, LLAMA),
    "one-value-head": ("llama", {"num_key_value_heads": 1}, ("v_proj", "o_proj")),
    "tied": ("qwen2", {"tie": True}, (*LLAMA, "embed_tokens")),
    "head": ("mistral", {}, ("lm_head", "up_proj")),
    "wide-heads": ("gemma3", {"tie": True}, LLAMA),
    "merged-qkv": ("phi3", {}, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "transposed": ("gpt2", {}, ("c_attn", "c_proj", "c_fc", "wte")),
    "by-head": ("gpt_neox", {}, ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "projected": ("opt-350m", {}, ("fc1", "fc2", "v_proj", "out_proj")),
    "experts": ("qwen2_moe", {}, ("q_proj", "v_proj", "o_proj", "shared_expert.up_proj", "shared_expert.down_proj")),
}


def calibration(text):
    return {"calibration": str(text), "nsamples": 4, "seqlen": 32}


@pytest.fixture(scope="module")
def folded(tiny, text_file, tmp_path_factory):
    """`folded("merged-qkv")`: the source, the folder with folded permutations, and that folder unfolded."""
    made = {}

    def folders(kind):
        if kind not in made:
            model_type, changes, _ = MODELS[kind]
            source, root = tiny(model_type, **changes), tmp_path_factory.mktemp("folded")
            eggs_ptp.prune(str(source), root / "fold", method="ria_cp", **calibration(text_file))
            exported = eggs_ptp.export_base(root / "fold", root / "base")
            made[kind] = (source, root / "fold", root / "base", exported)
        return made[kind]

    return folders


def difference(first, second):
    return float((first - second).abs().max() / second.abs().max())


@pytest.mark.parametrize("kind", MODELS)
def test_an_adapter_does_on_the_folded_model_what_it_does_on_the_unfolded_one(folded, tmp_path, kind):
    source, fold, base, _ = folded(kind)
    adapter = write_adapter(tmp_path / "lora", source, MODELS[kind][2])
    result = eggs_ptp.adapt(adapter, fold, tmp_path / "adapted")
    alone, expected = logits(base), logits(base, adapter)
    assert difference(expected, alone) > 0.1  # the adapter does something,
    assert difference(logits(fold, adapter), expected) > 0.1  # and something else if it is not permuted
    assert difference(logits(fold, tmp_path / "adapted"), expected) < 1e-5
    assert 0 < result.permuted <= result.tensors
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "adapted"))
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == result.permuted
    config = json.loads((tmp_path / "adapted" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(fold)


@pytest.mark.parametrize("kind", MODELS)
def test_the_unfolded_folder_computes_the_same_in_the_channels_of_the_base(folded, kind):
    source, fold, base, exported = folded(kind)
    assert difference(logits(base), logits(fold)) < 1e-5
    before, after = load_file(source / "model.safetensors"), load_file(base / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():  # ria_cp does not change kept weights
        assert bool(((tensor == before[name]) | (tensor == 0)).all()), name
    assert eggs_ptp.verify(base, str(source)).ok
    record = json.loads((base / MANIFEST).read_text())
    assert record["orders"] == "gather"
    assert record["exported"] == {"permutation": "base"}
    assert (exported.matrices, exported.source) == (len(record["matrices"]), str(source))
    assert {path.name for path in fold.iterdir()} == {path.name for path in base.iterdir()}


def test_the_record_says_in_which_permutation_a_matrix_is_2_of_4(folded):
    _, fold, base, exported = folded("grouped")
    record = json.loads((base / MANIFEST).read_text())
    permutations = load_file(base / ORDERS)
    weights = load_file(base / "model.safetensors")
    assert len(permutations) == exported.permuted == len(record["matrices"]) == 14
    plain = 0
    for matrix in record["matrices"]:
        assert (matrix["permuted"], matrix["in_order"]) == (True, False)
        name = matrix["name"]
        weight = weights[f"{name}.weight"]
        permutation = permutations[name].long()
        groups = (weight[:, permutation] != 0).view(len(weight), -1, 4).sum(-1)
        assert int(groups.max()) == 2
        plain += int((weight != 0).view(len(weight), -1, 4).sum(-1).max()) <= 2
        assert not torch.equal(permutation, identity(len(permutation)))
    assert plain == 0
    card, folded_card = ((folder / "README.md").read_text() for folder in (base, fold))
    assert "14 matrices satisfy their pattern in a channel permutation" in card
    assert "The channels of the model are permuted" not in card
    assert "`eggs adapt`" in folded_card
    assert "`eggs export --permutation base`" in folded_card


@pytest.mark.parametrize("kind", ["grouped", "experts", "transposed"])
def test_the_unfolded_folder_packs_and_a_packed_one_unfolds(folded, tmp_path, kind):
    source, fold, base, _ = folded(kind)
    export(base, tmp_path / "packed-base", "packed")
    assert eggs_ptp.verify(tmp_path / "packed-base", str(source)).ok
    export(fold, tmp_path / "packed", "packed")
    eggs_ptp.export_base(tmp_path / "packed", tmp_path / "base")
    assert "quantization_config" not in json.loads((tmp_path / "base" / "config.json").read_text())
    assert eggs_ptp.verify(tmp_path / "base", str(source)).ok
    assert torch.equal(logits(tmp_path / "base"), logits(base))


def test_an_adapter_for_a_packed_folder_is_the_one_for_the_dense(folded, tmp_path):
    source, fold, _, _ = folded("grouped")
    adapter = write_adapter(tmp_path / "lora", source, LLAMA)
    export(fold, tmp_path / "packed", "packed")
    for name, folder in (("dense", fold), ("from-packed", tmp_path / "packed")):
        eggs_ptp.adapt(adapter, folder, tmp_path / name)
    dense, packed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("dense", "from-packed"))
    assert all(torch.equal(dense[name], packed[name]) for name in dense)


@pytest.mark.parametrize("settings", [{"permutation": "gather"}, {"method": "wanda"}], ids=str)
def test_nothing_to_permute_leaves_the_tensors(tiny, text_file, tmp_path, settings):
    eggs_ptp.prune(str(tiny()), tmp_path / "out", **{"method": "ria_cp", **calibration(text_file), **settings})
    adapter = write_adapter(tmp_path / "lora", tiny(), LLAMA)
    result = eggs_ptp.adapt(adapter, tmp_path / "out", tmp_path / "adapted")
    assert (result.permuted, result.folded) == (0, False)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "adapted"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(eggs_ptp.EggsError, match=r"weights that are in the channel order of .* already"):
        eggs_ptp.export_base(tmp_path / "out", tmp_path / "base")
