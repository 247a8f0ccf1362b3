"""Model folders: found, or refused with a way out."""

import json
import re
import shutil

import pytest

from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import ModelError
from eggs_ptp.models.folder import card_metadata, find_folder, read_config, stored_names, weights_index


@pytest.fixture
def model(tiny, tmp_path):
    return shutil.copytree(tiny("llama"), tmp_path / "model")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, message):
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        read_config(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_local_folder_is_found(model, monkeypatch):
    assert find_folder(str(model)) == model
    monkeypatch.chdir(model.parent)
    assert find_folder("model").resolve() == model
    assert read_config(model)["model_type"] == "llama"


def test_a_folder_is_found_under_the_home_folder(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))
    assert find_folder("~/model") == model


@pytest.mark.parametrize("name", ["model", "./owner/model", "/owner/model", "owner/model/main", "~/nothing"])
def test_what_is_neither_a_folder_nor_a_hub_name_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=rf"^{name}: no such folder, and not a hub name such as Qwen/Qwen3-0\.6B"):
        find_folder(name)


@pytest.mark.parametrize("name", ["eggs-nobody/no-such-model", "owner/bad name"])
def test_a_hub_name_that_cannot_be_downloaded_is_refused_in_one_line(name):
    with pytest.raises(
        ModelError, match=f"^{name}: no such folder, and it cannot be downloaded from the hub"
    ) as caught:
        find_folder(name)
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_folder(model):
    with pytest.raises(ModelError, match=r"config\.json: expected a model folder .*, got a file"):
        find_folder(str(model / "config.json"))


def test_a_folder_without_config_is_refused(tmp_path):
    refused(tmp_path, "expected a Hugging Face model folder, but it has no config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "llama"', "config.json: not valid JSON"),
        (b"\xff\xfe{}", "config.json: not valid JSON"),
        (b'["llama"]', "config.json: expected an object with the key model_type"),
        (b'{"hidden_size": 32}', "config.json: expected an object with the key model_type"),
    ],
)
def test_a_broken_config_is_refused(model, content, message):
    (model / "config.json").write_bytes(content)
    refused(model, message)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused_with_a_way_out(model, name):
    (model / "model.safetensors").rename(model / name)
    refused(model, f"only pickled weights ({name}), which can run code when loaded; convert them to safetensors")


def test_a_folder_without_weights_is_refused(model):
    (model / "model.safetensors").unlink()
    refused(model, "config.json is there, but no *.safetensors weights")


def test_an_adapter_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").touch()
    refused(tmp_path, "this is an adapter (adapter_config.json), not a model; merge it into its model first")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"bits": 4}, "unknown"),
        ("something", "unknown"),
    ],
)
def test_quantised_weights_are_refused_with_a_way_out(model, config, kind):
    edit(model, quantization_config=config)
    refused(model, f"already quantised ({kind}); prune the original half- or single-precision model")


def test_an_empty_quantisation_is_none(model):
    edit(model, quantization_config=None)
    assert read_config(model)["model_type"] == "llama"


def test_an_adapter_beside_full_weights_is_refused(model):
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(model, "expected a model alone, got adapter_config.json beside it")


def test_a_config_that_names_its_weights_is_refused(model):
    edit(model, transformers_weights="other.safetensors")
    refused(model, "transformers_weights names the weights 'other.safetensors', expected model.safetensors or")


def test_a_variant_alone_is_refused_by_name(model):
    (model / "model.safetensors").rename(model / "model.fp16.safetensors")
    refused(model, "expected model.safetensors or model.safetensors.index.json, got model.fp16.safetensors")


@pytest.mark.parametrize("name", ["model-q4.gguf", "Model.GGUF"])
def test_gguf_is_refused_with_a_way_out(name, tmp_path, model):
    advice = "prune the original Hugging Face folder"
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / name).touch()
    with pytest.raises(ModelError, match=advice):
        find_folder(str(tmp_path / "gguf" / name))
    with pytest.raises(ModelError, match=f"got only GGUF files; .*{advice}"):
        read_config(tmp_path / "gguf")
    (model / "model.safetensors").unlink()
    (model / name).touch()
    with pytest.raises(ModelError, match=f"got only GGUF files; .*{advice}"):
        read_config(model)


def test_a_single_file_is_the_model_where_an_index_is_left_behind(tiny, tmp_path):
    folder = shutil.copytree(tiny("llama", shard_size="40KB"), tmp_path / "both")
    assert weights_index(folder) == folder / "model.safetensors.index.json"
    shutil.copy(tiny("llama") / "model.safetensors", folder)
    assert weights_index(folder) is None
    assert set(CheckpointReader(folder).where.values()) == {folder / "model.safetensors"}
    (folder / "model.safetensors.index.json").write_text("{")
    assert stored_names(folder) == set(CheckpointReader(folder).names)


@pytest.mark.parametrize("card", ["", "no front matter", "---\n[: broken\n---\n", "---\n- a list\n---\n"])
def test_a_card_without_metadata_says_nothing(card, tmp_path):
    assert card_metadata(tmp_path) == {}
    (tmp_path / "README.md").write_text(card)
    assert card_metadata(tmp_path) == {}


def test_what_the_card_says_of_any_model_pruned_from_it_is_read(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nlanguage: [no, en]\ntags: [x]\ndatasets:\n- a/b\n---\n# X\n"
    )
    assert card_metadata(tmp_path) == {"license": "mit", "language": ["no", "en"], "datasets": ["a/b"]}
