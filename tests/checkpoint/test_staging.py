"""Output folders: complete or missing, and with the source's own files byte for byte."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from eggs_ptp.checkpoint import staging as staging_module
from eggs_ptp.checkpoint.staging import StagingFolder, check_space
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CheckpointError


class SomeError(Exception):
    """Something goes wrong while a staging folder is open."""


PERMUTATIONS = {"model.layers.0.mlp.up_proj": torch.arange(32, dtype=torch.int32).flip(0)}


def test_a_system_without_posix_locks_is_refused_before_anything_is_created(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(CheckpointError, match=r"out: .* file locks of Linux and macOS, which this system lacks; run"):
        StagingFolder(tmp_path / "out").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_only_writing_needs_posix_locks():
    code = "import sys; sys.modules['fcntl'] = None; import eggs_ptp.api, eggs_ptp.cli.program"
    subprocess.run([sys.executable, "-c", code], check=True)


def blocks(reader):
    """The tensors of both blocks, halved so that they differ from the source's."""
    for index in range(2):
        names = [name for name in reader.names if name.startswith(f"model.layers.{index}.")]
        yield index, {name: reader.read(name) / 2 for name in names}


def write(source, output, *, overwrite=False, permutations=PERMUTATIONS):
    reader = CheckpointReader(source)
    with StagingFolder(output, overwrite=overwrite) as staging:
        for index, tensors in blocks(reader):
            staging.write_block(index, tensors)
        staging.finish(reader, permutations, {"format": 1}, "# card\n")
    return Path(output)


def snapshot(folder):
    """Every path below a folder, with the content of files."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def previous(tiny, tmp_path):
    """A previous output, which has to survive every failure."""
    folder = shutil.copytree(tiny("mistral"), tmp_path / "out")
    (folder / "notes.md").write_text("notes")
    return folder


def test_blocks_and_other_tensors_become_one_file(tiny, tmp_path):
    source = tiny("llama")
    output = write(source, tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(output / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor / 2 if ".layers." in name else tensor)
    assert sorted(p.name for p in output.glob("*.safetensors*")) == ["model.safetensors"]
    AutoModelForCausalLM.from_pretrained(output)


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shard_size", ["5GB", "40KB"], ids=["single", "sharded"])
def test_a_large_checkpoint_becomes_shards_with_an_index(tiny, tmp_path, monkeypatch, shard_size, tie):
    monkeypatch.setattr(staging_module, "MAX_SINGLE_FILE_BYTES", 1000)
    source = CheckpointReader(tiny("llama", shard_size=shard_size, tie=tie))
    output = write(source.folder, tmp_path / "out")
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(p.name for p in output.glob("*.safetensors")) == names
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(source.bytes(name) for name in source.names)
    assert index["weight_map"]["model.layers.1.mlp.up_proj.weight"] == names[1]
    assert index["weight_map"]["model.norm.weight"] == names[2]
    result = CheckpointReader(output)
    assert result.names == source.names
    for name in source.names:
        assert torch.equal(result.read(name), source.read(name) / (2 if ".layers." in name else 1))
    AutoModelForCausalLM.from_pretrained(output)


def test_an_output_that_others_have_written_meanwhile_is_not_replaced(tiny, tmp_path, monkeypatch):
    def write_output(staging, folder):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.md").write_text("notes")

    monkeypatch.setattr(StagingFolder, "copy_files", write_output)
    with pytest.raises(CheckpointError, match=r"out: is no longer empty; pass --overwrite"):
        write(tiny("llama"), tmp_path / "out")
    assert snapshot(tmp_path) == {Path("out"): None, Path("out/notes.md"): b"notes"}


def test_an_empty_folder_is_replaced(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    assert (write(tiny("llama"), tmp_path / "out") / "config.json").is_file()


@pytest.mark.parametrize("listed", [True, False], ids=["of the same file system", "of another"])
def test_a_mount_point_is_refused_before_any_work(tmp_path, monkeypatch, listed):
    output = tmp_path / "my out"
    output.mkdir()
    if listed:
        table = f"36 35 98:0 /mnt1 {tmp_path}/my\\040out rw,noatime - ext4 /dev/root rw\n"
        monkeypatch.setattr(Path, "read_text", lambda path, **_: table)
    else:
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == output)
    with pytest.raises(CheckpointError, match=r"my out: a mount point, .*; write to a folder below it"):
        StagingFolder(output)
    StagingFolder(output / "inside")


def test_a_ring_of_links_is_refused(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(CheckpointError, match="one: "), StagingFolder(tmp_path / "one"):
        pass


def test_the_journal_of_an_output_with_a_longer_name_is_not_touched(tmp_path):
    others = [tmp_path / name for name in (".out.draft.b.draft", ".out.draft.7.draft")]
    left = tmp_path / ".out.draft.123"
    for folder in (*others, left):
        (folder / "blocks").mkdir(parents=True)
    with StagingFolder(tmp_path / "out"):
        pass
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_config_and_tokenizer_are_copied_byte_for_byte_and_weights_are_not(tiny, tmp_path):
    source = shutil.copytree(tiny("llama"), tmp_path / "source")
    copied_files = {
        "chat_template.jinja": b"{{ a }}\r\n",
        "tokenizer.model": b"\x00\xff",
        "merges.txt": b"a b",
        "modeling_x.py": b"x = 1",
    }
    other_files = {
        "pytorch_model.bin": b"pickle",
        "README.md": b"source",
        "eggs.json": b"old",
    }
    for name, content in {**copied_files, **other_files}.items():
        (source / name).write_bytes(content)
    (source / "onnx").mkdir()
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"{{ b }}")
    output = write(source, tmp_path / "out")
    copied = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", *copied_files]
    for name in copied:
        assert (output / name).read_bytes() == (source / name).read_bytes()
    assert (output / "additional_chat_templates" / "tool_use.jinja").read_bytes() == b"{{ b }}"
    folders = {"additional_chat_templates", "eggs"}
    assert {p.name for p in output.iterdir()} == {*copied, *folders, "README.md", "eggs.json", "model.safetensors"}
    assert (output / "README.md").read_text() == "# card\n"
    assert json.loads((output / "eggs.json").read_text()) == {"format": 1}


def test_a_sharded_source_leaves_no_stale_index(tiny, tmp_path):
    output = write(tiny("llama", shard_size="40KB"), tmp_path / "out")
    assert [p.name for p in output.glob("model*")] == ["model.safetensors"]


def flip_head(name, rows):
    return (chunk.flip(1) for chunk in rows) if name == "lm_head.weight" else rows


def test_tensors_outside_of_blocks_can_be_changed_by_name(tiny, tmp_path, monkeypatch):
    source = CheckpointReader(tiny("llama"))
    for size in (staging_module.MAX_SINGLE_FILE_BYTES, 1000):
        monkeypatch.setattr(staging_module, "MAX_SINGLE_FILE_BYTES", size)
        with StagingFolder(tmp_path / str(size)) as staging:
            for index, tensors in blocks(source):
                staging.write_block(index, tensors)
            staging.finish(source, {}, {}, "", flip_head)
        result = CheckpointReader(tmp_path / str(size))
        assert torch.equal(result.read("lm_head.weight"), source.read("lm_head.weight").flip(1))
        for name in ("model.norm.weight", "model.embed_tokens.weight"):
            assert torch.equal(result.read(name), source.read(name))


def test_permutations_are_stored_if_there_are_any(tiny, tmp_path):
    stored = load_file(write(tiny("llama"), tmp_path / "out") / "eggs" / "orders.safetensors")
    assert stored.keys() == PERMUTATIONS.keys()
    assert stored["model.layers.0.mlp.up_proj"].dtype == torch.int32
    assert not (write(tiny("llama"), tmp_path / "plain", permutations={}) / "eggs").exists()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_permissions_are_those_of_the_umask(tiny, tmp_path, umask):
    before = os.umask(umask)
    try:
        output = write(tiny("llama"), tmp_path / "new" / "out")
    finally:
        os.umask(before)
    for path in (output, *output.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.parametrize("content", ["config.json", "holiday.jpg"])
def test_a_folder_that_is_not_empty_is_refused(tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / content).touch()
    with pytest.raises(CheckpointError, match=r"out: not empty; pass --overwrite to replace it, or another folder"):
        StagingFolder(tmp_path / "out")


def test_overwrite_replaces_model_folders_only(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.jpg").touch()
    with pytest.raises(
        CheckpointError, match=r"--overwrite replaces model folders only, and this one has no config\.json"
    ):
        StagingFolder(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_refused(tmp_path, overwrite):
    (tmp_path / "out").touch()
    with pytest.raises(CheckpointError, match="expected a folder to write to, got a file"):
        StagingFolder(tmp_path / "out", overwrite=overwrite)


def test_an_empty_folder_is_filled(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    assert (write(tiny("llama"), tmp_path / "out") / "model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_overwrite_replaces_the_complete_folder(tiny, previous):
    write(tiny("llama"), previous, overwrite=True)
    assert not (previous / "notes.md").exists()
    assert json.loads((previous / "config.json").read_text())["model_type"] == "llama"
    assert [p.name for p in previous.parent.iterdir()] == ["out"]


def test_a_folder_can_be_overwritten_by_its_own_result(previous):
    before = load_file(previous / "model.safetensors")
    write(previous, previous, overwrite=True)
    after = load_file(previous / "model.safetensors")
    assert all(torch.equal(after[name], before[name] / (2 if ".layers." in name else 1)) for name in before)


def test_the_current_folder_can_be_the_output(tiny, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    write(tiny("llama"), Path())
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_stays_a_link(tiny, previous, tmp_path):
    (tmp_path / "link").symlink_to(previous)
    write(tiny("llama"), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert json.loads((previous / "config.json").read_text())["model_type"] == "llama"
    assert {p.name for p in tmp_path.iterdir()} == {"link", "out"}


@pytest.mark.parametrize("error", [SomeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("path", ["out", "new/and/deep/out"])
def test_a_failure_leaves_nothing(tiny, tmp_path, path, error):
    reader = CheckpointReader(tiny("llama"))

    def interrupted():
        with StagingFolder(tmp_path / path) as staging:
            for index, tensors in blocks(reader):
                staging.write_block(index, tensors)
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_created_parents_that_others_use_are_kept(tiny, tmp_path):
    def fail():
        with StagingFolder(tmp_path / "new" / "out"):
            (tmp_path / "new" / "other").touch()
            raise SomeError

    with pytest.raises(SomeError):
        fail()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["other"]


def test_a_failure_leaves_the_previous_output_as_it_was(tiny, previous):
    before = snapshot(previous.parent)
    reader = CheckpointReader(tiny("llama"))

    def fail():
        with StagingFolder(previous, overwrite=True) as staging:
            staging.write_block(*next(blocks(reader)))
            raise SomeError

    with pytest.raises(SomeError):
        fail()
    assert snapshot(previous.parent) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
def test_a_move_that_fails_leaves_the_previous_output_as_it_was(tiny, previous, monkeypatch, error):
    before = snapshot(previous.parent)
    rename = Path.rename

    def failing_rename(self, target):
        if self.name == "folder":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    monkeypatch.setattr(staging_module, "exchange", lambda first, second: False)
    with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
        write(tiny("llama"), previous, overwrite=True)
    assert snapshot(previous.parent) == before


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_replaced_in_one_step_where_the_system_can(tiny, previous, monkeypatch, at_once):
    moved, rename = [], Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: moved.append(self.name) or rename(self, target))
    if not at_once:
        monkeypatch.setattr(staging_module, "exchange", lambda first, second: False)
    write(tiny("llama"), previous, overwrite=True)
    assert moved == ["block-00000.part", "block-00001.part", *([] if at_once else ["out", "folder"]), ".out.draft"]
    assert [p.name for p in previous.parent.iterdir()] == ["out"]


def test_a_previous_output_that_a_killed_process_had_moved_away_comes_back(tiny, previous):
    before = snapshot(previous)
    (previous.parent / ".out.draft").mkdir()
    previous.rename(previous.parent / ".out.draft" / "previous")
    with StagingFolder(previous, overwrite=True):
        assert snapshot(previous) == before
    assert [p.name for p in previous.parent.iterdir()] == ["out"]


def test_files_of_killed_processes_are_deleted(tiny, tmp_path):
    for name in (".out.draft", ".out.draft.4711"):
        (tmp_path / name / "blocks").mkdir(parents=True)
        (tmp_path / name / "blocks" / "block-00007.safetensors").write_bytes(b"stale")
    write(tiny("llama"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_processes_cannot_write_the_same_output(tmp_path):
    with StagingFolder(tmp_path / "out"):
        with (
            pytest.raises(
                CheckpointError, match=r"out: another run is writing to it \(it holds .*\.out\.draft\); wait"
            ),
            StagingFolder(tmp_path / "out", overwrite=True),
        ):
            pytest.fail("the staging folder was opened")
        assert (tmp_path / ".out.draft" / "folder").is_dir()
        with StagingFolder(tmp_path / "other"):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["write_block", "orders", "manifest"])
def test_a_full_disk_is_named_and_leaves_nothing(tiny, tmp_path, monkeypatch, step):
    full = OSError(28, "No space left on device")
    if step == "manifest":
        write_text = Path.write_text

        def failing_write_text(self, *args, **kwargs):
            if self.name == "eggs.json":
                raise full
            return write_text(self, *args, **kwargs)

        monkeypatch.setattr(Path, "write_text", failing_write_text)
    else:
        prefix = "block-" if step == "write_block" else "orders"

        def save(tensors, path, metadata):
            if path.name.startswith(prefix):
                raise full
            save_file(tensors, path, metadata)

        monkeypatch.setattr("eggs_ptp.engine.tensors.reader.save_file", save)
    with pytest.raises(CheckpointError, match=r"cannot be written \(.*No space left on device\)"):
        write(tiny("llama"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match=re.escape(f"{tmp_path}/file/out: cannot be written (")),
        StagingFolder(tmp_path / "file" / "out"),
    ):
        pytest.fail("the staging folder was opened")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_parent_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # file modes do not stop the superuser, who may run this test
    with (
        pytest.raises(CheckpointError, match=r"out: cannot be written \(Permission denied\)"),
        StagingFolder(tmp_path / "out"),
    ):
        pytest.fail("the staging folder was opened")
    assert list(tmp_path.iterdir()) == []


def test_a_previous_output_that_cannot_be_moved_back_is_not_deleted(tmp_path, monkeypatch):
    """Without an exchange in one step there are two renames, of which the second and the way back fail here."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.json").write_text("previous")
    monkeypatch.setattr(staging_module, "exchange", lambda *_: False)
    rename = Path.rename
    targets = []

    def failing_rename(self, target):
        targets.append(target)
        if len(targets) in (2, 3):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, target)

    def replace_output():
        with StagingFolder(output, overwrite=True) as staging:
            (staging.folder / "config.json").write_text("new")
            monkeypatch.setattr(Path, "rename", failing_rename)
            staging.publish()

    with pytest.raises(CheckpointError, match="Permission denied"):
        replace_output()
    assert not output.exists()
    monkeypatch.undo()
    with pytest.raises(SomeError), StagingFolder(output, overwrite=True):
        raise SomeError
    assert (output / "config.json").read_text() == "previous"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("detour", ["missing/a/../../full", "full/../full", "missing/../full/."])
def test_an_output_is_checked_where_its_path_leads(detour, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        StagingFolder(tmp_path / detour)


@pytest.mark.parametrize("finished_bytes", [0, 100])
def test_a_disk_that_is_too_small_is_refused_from_the_headers(finished_bytes, tiny, tmp_path, monkeypatch):
    reader = CheckpointReader(tiny("llama"))
    total = sum(reader.bytes(name) for name in reader.names)
    blocks = sum(reader.bytes(name) for name in reader.names if ".layers." in name)
    free = total + blocks - finished_bytes
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    check_space(tmp_path / "a" / "out", reader, finished_bytes=finished_bytes)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free - 1))
    with pytest.raises(CheckpointError, match=r"out: expected .* kB free on its disk .*; free some, or write to"):
        check_space(tmp_path / "a" / "out", reader, finished_bytes=finished_bytes)
