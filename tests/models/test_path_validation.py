"""Untrusted model folders: nothing outside of them is read, and their code runs only on request."""

import json
import os
import shutil

import pytest

from eggs_ptp import api
from eggs_ptp.checkpoint.packed import export
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import ModelError
from eggs_ptp.models.folder import commit_of, read_config
from eggs_ptp.models.path_validation import is_plain

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MARK_CODE = "import pathlib; pathlib.Path({!r}).write_text('ran')\n"


@pytest.fixture
def model(tiny, tmp_path):
    return shutil.copytree(tiny("llama", shard_size="40KB"), tmp_path / "model")


@pytest.fixture
def snapshot(model):
    """The same model as in the hub's cache: links to blobs."""
    cache = model.parent / "models--owner--name"
    folder = cache / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(cache / "blobs" / f"{number:040x}")
        (folder / file.name).symlink_to(f"../../blobs/{number:040x}")
    return folder


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "LICENSE", "eggs/orders.safetensors", "secret.txt"])
def test_a_link_out_of_the_folder_is_refused_and_not_copied(model, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_bytes((model / name).read_bytes() if (model / name).exists() else b"secret")
    (model / name).unlink(missing_ok=True)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).symlink_to(secret)
    for run in (
        lambda: read_config(model),
        lambda: api.prune(str(model), tmp_path / "out", method="magnitude"),
        lambda: export(model, tmp_path / "out", "packed"),
    ):
        with pytest.raises(ModelError, match=rf"{name}: a link to {secret}, out of the model's folder; copy"):
            run()
    assert not (tmp_path / "out").exists()


def test_a_shard_outside_the_folder_is_refused(model, tmp_path):
    shard = sorted(model.glob("*.safetensors"))[0]
    shutil.move(shard, tmp_path / shard.name)
    shard.symlink_to(tmp_path / shard.name)
    with pytest.raises(ModelError, match="out of the model's folder"):
        CheckpointReader(model)
    shard.unlink()
    os.symlink(f"../{shard.name}", model / "deep")
    shard.symlink_to("deep")  # a link to a link
    with pytest.raises(ModelError, match="out of the model's folder"):
        CheckpointReader(model)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.txt", "config.json"])
def test_a_pipe_is_not_waited_for(model, name):
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(ModelError, match=rf"{name}: neither a file nor a folder|no config\.json"):
        read_config(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_unpaired_surrogates_are_refused(model, name):
    edit(model / name, x="\ud83d\ude00")
    CheckpointReader(model)
    edit(model / name, x="\ud800")
    with pytest.raises(ModelError, match=rf"{name}: not valid JSON .*surrogates not allowed"):
        read_config(model), CheckpointReader(model)


def test_links_inside_the_folder_are_followed_and_loops_refused(model):
    (model / "again.json").symlink_to("config.json")
    assert read_config(model)["model_type"] == "llama"
    (model / "ring.json").symlink_to("ring.json")
    with pytest.raises(ModelError, match=r"ring\.json: a link that leads nowhere"):
        read_config(model)


def test_a_snapshot_of_the_hubs_cache_is_read_and_its_commit_recorded(snapshot, tmp_path, model):
    assert commit_of(snapshot) == COMMIT
    assert commit_of(snapshot.parent) is None
    record = api.prune(str(snapshot), tmp_path / "out", method="magnitude")
    assert record.source["commit"] == COMMIT
    assert json.loads((tmp_path / "out" / "eggs.json").read_text())["source"]["commit"] == COMMIT
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


def test_a_blob_that_links_out_of_the_cache_is_refused(snapshot, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (snapshot / "notes.txt").symlink_to("../../blobs/notes")
    (snapshot.parent.parent / "blobs" / "notes").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=r"notes\.txt: a link to .*secret, out of the model's folder"):
        read_config(snapshot)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_file", "../secret"),
        ("tokenizer_file", "/etc/hostname"),
        ("fast_tokenizer_files", ["a.json", "../b.json"]),
    ],
)
def test_a_tokenizer_that_names_files_outside_the_folder_is_refused(model, key, value):
    edit(model / "tokenizer_config.json", **{key: value})
    with pytest.raises(ModelError, match=rf"tokenizer_config\.json: {key} is .*must be in the folder itself"):
        read_config(model)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "a\\b", "a\0b", "a\nb", "a\ud800"])
def test_names_that_are_not_of_a_file_in_the_folder(name):
    assert not is_plain(name)
    assert is_plain("model-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pkl"])
def test_an_index_of_pickled_weights_is_refused_with_a_way_out(model, name):
    index = model / "model.safetensors.index.json"
    table = dict.fromkeys(json.loads(index.read_text())["weight_map"], name)
    edit(index, weight_map=table)
    with pytest.raises(ModelError, match=r"only safetensors are read, .*load with transformers, then save_pretrained"):
        CheckpointReader(model)


@pytest.mark.parametrize("config_file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_does_not_run_unless_trusted(model, tmp_path, text_file, config_file):
    mark = tmp_path / "ran"
    (model / "own.py").write_text(MARK_CODE.format(str(mark)))
    classes = {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Model",
        "AutoTokenizer": ["own.Slow", "own.Fast"],
    }
    changes = {"model_type": "own"} if config_file == "config.json" else {"tokenizer_class": "OwnTokenizer"}
    edit(model / config_file, auto_map=classes, **changes)
    with pytest.raises(ModelError, match="--trust-remote-code lets it run"):
        api.prune(str(model), tmp_path / "out", method="ria", calibration=str(text_file), nsamples=2, seqlen=16)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
