"""Files that accompany a pruned model: what belongs to it, and nothing that changes what loads."""

import json

import pytest

from eggs_ptp.checkpoint.copied_files import files_to_copy
from eggs_ptp.errors import ModelError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def copied(folder):
    return {file.relative_to(folder).as_posix() for file in files_to_copy(folder)}


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "license.md",
        "Licence.txt",
        "USE_POLICY.md",
        "Notice",
        "LICENSE-MODEL",
        "LICENSE.Apache-2.0",
        "gemma_license.html",
        "COPYING",
        "Third-Party-Notices.md",
    ],
)
def test_licences_are_copied_in_any_spelling(name, tmp_path):
    assert copied(make(tmp_path, name, "config.json")) == {name, "config.json"}


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors.index.json",
        "model.safetensors.index.fp16.json",
        "pytorch_model.bin.index.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "eggs.json",
        "policy_head.safetensors",
        "README.md",
    ],
)
def test_nothing_is_copied_that_changes_what_loads(name, tmp_path):
    assert copied(make(tmp_path, name, "config.json")) == {"config.json"}


def sentence_transformer(folder, *files, paths=("", "1_Pooling")):
    make(folder, "config.json", "sentence_bert_config.json", *files)
    (folder / "modules.json").write_text(json.dumps([{"idx": i, "path": path} for i, path in enumerate(paths)]))
    return folder


def test_modules_come_with_the_folders_that_they_name(tmp_path):
    folder = sentence_transformer(tmp_path, "1_Pooling/config.json", "onnx/config.json")
    assert copied(folder) == {"config.json", "sentence_bert_config.json", "modules.json", "1_Pooling/config.json"}


@pytest.mark.parametrize(
    ("files", "paths"),
    [
        ([], ("", "1_Pooling")),
        (["1_Pooling/config.json", "2_Dense/model.safetensors"], ("", "1_Pooling", "2_Dense")),
        (["1_Pooling/config.json"], ("", "../1_Pooling")),
        (["1_Pooling/config.json"], ("", "/etc")),
    ],
)
def test_modules_that_cannot_accompany_the_model_are_left_out(files, paths, tmp_path):
    folder = tmp_path / "model"
    assert copied(sentence_transformer(folder, *files, paths=paths)) == {"config.json"}


def test_a_link_out_of_a_folder_of_modules_is_refused(tmp_path):
    folder = sentence_transformer(tmp_path / "model", "1_Pooling/config.json")
    make(tmp_path, "secret.json")
    (folder / "1_Pooling" / "other.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ModelError, match=r"other\.json"):
        files_to_copy(folder)
