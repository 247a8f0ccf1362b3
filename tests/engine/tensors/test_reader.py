"""Reading checkpoints: single files, shards, and everything that can be wrong with them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from eggs_ptp.engine.tensors.reader import CheckpointReader, save_tensors
from eggs_ptp.errors import CheckpointError, ModelError


def test_sharded_and_single_folders_read_the_same(tiny):
    single, sharded = CheckpointReader(tiny("llama")), CheckpointReader(tiny("llama", shard_size="40KB"))
    assert len(set(sharded.where.values())) > 2
    assert single.names == sharded.names
    for name in single.names:
        assert torch.equal(single.read(name), sharded.read(name))
        assert single.shape(name) == tuple(single.read(name).shape)
        assert single.bytes(name) == single.read(name).nbytes


@pytest.fixture
def sharded(tiny, tmp_path):
    return shutil.copytree(tiny("llama", shard_size="40KB"), tmp_path / "model")


def _edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_a_missing_shard_is_named(sharded):
    first = sorted(sharded.glob("model-*.safetensors"))[0]
    first.unlink()
    with pytest.raises(ModelError, match=f"{first.name}: this shard is named in the index but missing"):
        CheckpointReader(sharded)


def test_a_truncated_shard_is_named(sharded):
    first = sorted(sharded.glob("model-*.safetensors"))[0]
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"{first.name}: not a readable safetensors file"):
        CheckpointReader(sharded)


def test_a_shard_outside_the_folder_is_refused(sharded):
    _edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": "../elsewhere.safetensors"}))
    with pytest.raises(ModelError, match="shards must lie in the folder itself"):
        CheckpointReader(sharded)


def test_an_index_that_misplaces_a_tensor_is_refused(sharded):
    file = sorted(sharded.glob("model-*.safetensors"))[0].name
    _edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weighty": file}))
    with pytest.raises(ModelError, match=r"model\.norm\.weighty"):
        CheckpointReader(sharded)


def test_a_broken_index_is_named(sharded):
    for text, reason in {"{": "not valid JSON", "[]": "expected an index with a weight_map"}.items():
        (sharded / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ModelError, match=reason):
            CheckpointReader(sharded)


def test_an_unknown_tensor_is_named(tiny):
    with pytest.raises(ModelError, match=r"no tensor is named model\.layers\.9\.x"):
        CheckpointReader(tiny("llama")).read("model.layers.9.x")


def test_saved_files_follow_the_umask(tmp_path):
    import os

    before = os.umask(0o027)
    try:
        save_tensors({"a": torch.ones(2, 3).T}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.ones(3, 2))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing.*cannot be written"):
        save_tensors({"a": torch.ones(1)}, tmp_path / "missing" / "a.safetensors")


def test_an_unexpected_type_is_named(tmp_path):
    save_file({"a": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="a has type F8_E4M3"):
        CheckpointReader(tmp_path).dtype("a")
