"""Adapters that cannot be permuted are refused in one line, and leave nothing behind; parts beside A and B follow."""

import json
import shutil

import pytest
import torch
from lora import PREFIX, logits, write_adapter
from safetensors.torch import load_file, save_file

import eggs_ptp
from eggs_ptp.checkpoint.adapter import RECORD
from eggs_ptp.checkpoint.staging import ORDERS
from eggs_ptp.errors import EggsError

TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q, V = (f"model.layers.0.self_attn.{name}_proj" for name in "qv")


@pytest.fixture(scope="module")
def folded(tiny, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folded") / "out"
    eggs_ptp.prune(str(tiny()), folder, method="ria_cp", calibration=str(text_file), nsamples=4, seqlen=32)
    return folder


@pytest.fixture
def adapter(tiny, tmp_path):
    return write_adapter(tmp_path / "lora", tiny(), TARGETS)


def change_config(adapter, **changes):
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, **changes}))


def change_weights(adapter, changes, rename=lambda name: name):
    tensors = {rename(name): tensor for name, tensor in load_file(adapter / WEIGHTS).items()}
    tensors.update(changes)
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, adapter / WEIGHTS)


def pickled(adapter):
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")


REFUSED = {
    "IA3": (lambda path: change_config(path, peft_type="IA3"), "expected an adapter of type LORA, got 'IA3'"),
    "prompt": (lambda path: change_config(path, peft_type="PROMPT_TUNING"), "type LORA, got 'PROMPT_TUNING'"),
    "no type": (lambda path: change_config(path, peft_type=None), "type LORA, got None"),
    "a list": (lambda path: (path / CONFIG).write_text("[]"), "type LORA, got None"),
    "replicated layers": (
        lambda path: change_config(path, layer_replication=[[0, 1], [0, 2]]),
        "got layer_replication",
    ),
    "parameters": (lambda path: change_config(path, target_parameters=["experts.up"]), "got target_parameters"),
    "pooled inputs": (lambda path: change_config(path, use_qalora=True), "got use_qalora"),
    "block diagonal": (lambda path: change_config(path, use_bdlora={"nblocks": 2}), "got use_bdlora"),
    "no config": (lambda path: (path / CONFIG).unlink(), f"got one without {CONFIG}"),
    "no weights": (lambda path: (path / WEIGHTS).unlink(), f"expected {WEIGHTS}, got no weights"),
    "pickled": (pickled, r"got only pickled weights \(adapter_model.bin\)"),
    "no folder": (shutil.rmtree, "got no such folder"),
    "a classifier": (
        lambda path: change_weights(path, {f"{PREFIX}score.weight": torch.ones(2, 32)}),
        "targets score, which that folder does not have",
    ),
    "another family": (
        lambda path: change_weights(path, {}, lambda name: name.replace("self_attn.q_proj", "attn.c_attn")),
        r"targets model.layers.0.attn.c_attn, which",
    ),
    "more layers": (
        lambda path: change_weights(path, {}, lambda name: name.replace("layers.1.", "layers.7.")),
        r"targets model.layers.7.self_attn.o_proj|targets model.layers.7.mlp.down_proj",
    ),
    "wider inputs": (
        lambda path: change_weights(path, {f"{PREFIX}{Q}.lora_A.weight": torch.ones(3, 64)}),
        r"with 32 inputs, as .* has, got shape \(3, 64\)",
    ),
    "more outputs": (
        lambda path: change_weights(path, {f"{PREFIX}{V}.lora_B.weight": torch.ones(32, 3)}),
        r"with 16 outputs, as .* has, got shape \(32, 3\)",
    ),
    "a convolution": (
        lambda path: change_weights(path, {f"{PREFIX}{Q}.lora_A.weight": torch.ones(3, 32, 1)}),
        r"got shape \(3, 32, 1\)",
    ),
    "a wider module": (
        lambda path: change_weights(path, {f"{PREFIX}lm_head.weight": torch.ones(258, 64)}),
        r"lm_head.weight of shape \(258, 32\), as .* got \(258, 64\)",
    ),
    "another part": (
        lambda path: change_weights(path, {f"{PREFIX}{Q}.lora_E": torch.ones(3, 1)}),
        "expected tensors of a LoRA .* got .*lora_E",
    ),
    "other names": (
        lambda path: change_weights(path, {}, lambda name: name.removeprefix(PREFIX)),
        "expected tensors of a LoRA .* got model.layers.0",
    ),
    "NaN": (
        lambda path: change_weights(path, {f"{PREFIX}{Q}.lora_A.weight": torch.full((3, 32), torch.nan)}),
        "holds NaN or infinity",
    ),
    "damaged": (lambda path: (path / WEIGHTS).write_bytes(b"x" * 100), WEIGHTS),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_permuted_is_refused(folded, adapter, tmp_path, case):
    damage, message = REFUSED[case]
    damage(adapter)
    with pytest.raises(EggsError, match=message) as error:
        eggs_ptp.adapt(adapter, folded, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_link_out_of_the_folder_is_not_followed(folded, adapter, tmp_path):
    (adapter / WEIGHTS).rename(tmp_path / "elsewhere")
    (adapter / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EggsError, match=r"a link to .* out of the model's folder"):
        eggs_ptp.adapt(adapter, folded, tmp_path / "out")


def test_an_adapter_is_permuted_once(folded, adapter, tmp_path):
    eggs_ptp.adapt(adapter, folded, tmp_path / "out")
    assert (tmp_path / "out" / RECORD).exists()
    with pytest.raises(EggsError, match="one that eggs adapt has permuted already"):
        eggs_ptp.adapt(tmp_path / "out", folded, tmp_path / "again")


def test_an_adapter_made_for_a_folded_folder_is_refused(folded, adapter, tmp_path):
    change_config(adapter, base_model_name_or_path=str(folded))
    with pytest.raises(EggsError, match=r"got one made for .* itself; use it as it is"):
        eggs_ptp.adapt(adapter, folded, tmp_path / "out")
    other = shutil.copytree(folded, tmp_path / "other")
    change_config(adapter, base_model_name_or_path=str(other))
    with pytest.raises(EggsError, match="which has folded permutations of its own"):
        eggs_ptp.adapt(adapter, folded, tmp_path / "out")


def test_a_folder_that_was_not_pruned_or_lacks_its_permutations_is_refused(tiny, folded, adapter, tmp_path):
    with pytest.raises(EggsError, match=r"no eggs\.json"):
        eggs_ptp.adapt(adapter, tiny(), tmp_path / "out")
    copy = shutil.copytree(folded, tmp_path / "copy")
    (copy / ORDERS).unlink()
    for act in (lambda: eggs_ptp.adapt(adapter, copy, tmp_path / "out"), lambda: eggs_ptp.export_base(copy, "out")):
        with pytest.raises(EggsError, match=f"folded into the weights, but {ORDERS} is missing"):
            act()


def test_only_adapter_folders_are_replaced(folded, adapter, tmp_path):
    output = tmp_path / "out"
    eggs_ptp.adapt(adapter, folded, output)
    with pytest.raises(EggsError, match="not empty"):
        eggs_ptp.adapt(adapter, folded, output)
    eggs_ptp.adapt(adapter, folded, output, overwrite=True)
    (output / CONFIG).unlink()
    with pytest.raises(EggsError, match=f"replaces adapter folders only, and this one has no {CONFIG}"):
        eggs_ptp.adapt(adapter, folded, output, overwrite=True)
    for inside in (folded / "lora", adapter / "out"):
        with pytest.raises(EggsError, match="inside the model's own folder"):
            eggs_ptp.adapt(adapter, folded, inside)


def test_parts_beside_a_and_b_follow_the_channels(tiny, folded, adapter, tmp_path):
    """Biases, DoRA's magnitudes, whole modules and single tokens, each held against the folded weights themselves."""
    source, fold = (load_file(folder / "model.safetensors") for folder in (tiny(), folded))
    rows = source[f"{V}.weight"].float()
    embedding = source["model.embed_tokens.weight"]
    changes = {
        f"{PREFIX}{V}.lora_magnitude_vector": rows.norm(dim=1),
        f"{PREFIX}{V}.lora_B.bias": rows.norm(dim=1),
        f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": embedding[[1, 5]].clone(),
        f"{PREFIX}lm_head.weight": torch.cat(
            [source["lm_head.weight"], source["lm_head.weight"][:2]]
        ),  # two new tokens
        f"{PREFIX}model.norm.weight": source["model.norm.weight"],
        f"{PREFIX}model.embed_tokens.base_layer.weight": embedding,
    }
    change_weights(adapter, changes)
    eggs_ptp.adapt(adapter, folded, tmp_path / "out")
    after = load_file(tmp_path / "out" / WEIGHTS)
    tokens = fold["model.embed_tokens.weight"]
    assert torch.equal(after[f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"], tokens[[1, 5]])
    assert torch.equal(after[f"{PREFIX}model.embed_tokens.base_layer.weight"], tokens)
    assert torch.equal(after[f"{PREFIX}lm_head.weight"][:258], fold["lm_head.weight"])
    assert torch.equal(after[f"{PREFIX}model.norm.weight"], fold["model.norm.weight"])
    for part in ("lora_magnitude_vector", "lora_B.bias"):
        name = f"{PREFIX}{V}.{part}"
        assert torch.equal(after[name].sort().values, changes[name].sort().values)
        kept = fold[f"{V}.weight"].norm(dim=1) / after[name]  # 2:4 of a row keeps at most its norm, and most of it
        assert 0.5 < float(kept.min()) <= float(kept.max()) <= 1.0
    assert not torch.equal(after[f"{PREFIX}{V}.lora_B.bias"], changes[f"{PREFIX}{V}.lora_B.bias"])


def test_an_adapter_of_the_model_without_its_head_fits(folded, adapter, tmp_path):
    eggs_ptp.adapt(adapter, folded, tmp_path / "whole")
    change_weights(adapter, {}, lambda name: name.replace(f"{PREFIX}model.", PREFIX))
    eggs_ptp.adapt(adapter, folded, tmp_path / "headless")
    whole, headless = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "headless"))
    for name, tensor in whole.items():
        assert torch.equal(headless[name.replace(f"{PREFIX}model.", PREFIX)], tensor)


def test_files_beside_the_weights(folded, adapter, tmp_path):
    (adapter / "LICENSE").write_text("a licence")
    (adapter / "optimizer.pt").write_bytes(b"x")
    eggs_ptp.adapt(adapter, folded, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {CONFIG, WEIGHTS, RECORD, "README.md", "LICENSE"}
    assert torch.isfinite(logits(folded, tmp_path / "out")).all()
