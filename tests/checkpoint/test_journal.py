"""The journal of an unfinished run: what it keeps, what it refuses, and that nothing of it stays."""

import json
import os
import shlex
import shutil
import subprocess
from collections import namedtuple
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model

from eggs_ptp import api
from eggs_ptp.checkpoint import blocks as blocks_module
from eggs_ptp.checkpoint import draft as draft_module
from eggs_ptp.checkpoint import journal as module
from eggs_ptp.checkpoint.draft import Draft
from eggs_ptp.checkpoint.record import versions
from eggs_ptp.cli.main import main
from eggs_ptp.cli.terminal import Progress
from eggs_ptp.engine import plan as plan_module
from eggs_ptp.engine.budget import Budget
from eggs_ptp.errors import CheckpointError, ModelError, NumericsError

BLOCKS = 4
SETTINGS = {"method": "eggs+", "nsamples": 4, "seqlen": 32}


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    """A model of which tests change files, for a while."""
    return shutil.copytree(
        tiny("llama", num_hidden_layers=BLOCKS), tmp_path_factory.mktemp("source") / "model", dirs_exist_ok=True
    )


@pytest.fixture(scope="module")
def prune_to(source, text_file):
    """`prune_to(folder)`, keeping a journal."""

    def run(folder, **changes):
        return api.prune(str(source), folder, **{"journal": True, "calibration": str(text_file), **SETTINGS, **changes})

    return run


@pytest.fixture
def prune(prune_to, tmp_path):
    """`prune()` into tmp_path/out."""
    return lambda output="out", **changes: prune_to(tmp_path / output, **changes)


@pytest.fixture(scope="module")
def whole(prune_to, tmp_path_factory):
    """What is to come out."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    prune_to(folder, journal=False)
    return weights(folder)


@pytest.fixture(scope="module")
def interrupted(prune_to, tmp_path_factory):
    """The journal of a run that was interrupted behind its second block."""
    folder = tmp_path_factory.mktemp("interrupted") / "out"
    with pytest.raises(KeyboardInterrupt) as caught:
        prune_to(folder, listener=Stop(2))
    kept = folder.parent / ".out.draft"
    assert caught.value.__notes__ == [f"2 finished blocks are kept in {kept}; the same command goes on from there"]
    return kept


@pytest.fixture
def stopped(interrupted, tmp_path):
    """The same beside tmp_path/out."""
    return shutil.copytree(interrupted, tmp_path / ".out.draft")


@contextmanager
def replaced(path, content):
    before, stat = path.read_bytes(), path.stat()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


class Stop:
    """Ends a run behind its block number `after`, and notes in which blocks there was work."""

    def __init__(self, after=None, error=KeyboardInterrupt):
        self.after, self.error, self.worked, self.remarks = after, error, set(), []

    def __call__(self, event):
        if event.kind == "matrix":
            self.worked.add(event.block)
        if event.kind == "remark":
            self.remarks.append(event.stage)
        if event.kind == "block" and event.block == self.after:
            raise self.error


def weights(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_only_the_last_entry_has_hidden_states_and_they_are_exact(prune, source, tmp_path):
    entering = []

    class Watch(Stop):
        def __call__(self, event):
            if event.kind == "block":
                folder = tmp_path / ".out.draft"
                assert [(folder / name / "stream").exists() for name in names(folder) if name.startswith("entry")] == [
                    *[False] * event.block,
                    event.block < BLOCKS,
                ]
                if event.block < BLOCKS:
                    entering.append(load_file(folder / f"entry-{event.block:05d}" / "stream" / "model.safetensors"))

    windows = torch.randint(0, 256, (3, 32), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "windows.npy", windows.numpy())
    prune(listener=Watch(), calibration=str(tmp_path / "windows.npy"))
    assert [stream.keys() for stream in entering] == [{"hidden", "dense"}] * (BLOCKS - 1)
    assert {tensor.dtype for stream in entering for tensor in stream.values()} == {torch.float32}
    model, _ = api.load(source)
    with torch.inference_mode():
        hidden = model(windows, output_hidden_states=True).hidden_states
    for index, stream in enumerate(entering, 1):
        assert torch.allclose(stream["dense"], hidden[index], atol=1e-4)
        assert not torch.allclose(stream["hidden"], hidden[index], atol=1e-4)


def test_goes_on_behind_the_last_finished_block_and_leaves_nothing(prune, stopped, whole, tmp_path):
    again = Stop()
    record = prune(listener=again)
    assert again.worked == {2, 3}
    assert again.remarks == [f"Going on behind block 2 of 4, finished earlier ({tmp_path / 'out'})"]
    assert weights(tmp_path / "out") == whole
    assert names(tmp_path) == ["out"]
    assert {"order", "journal"} <= record.stages.keys()  # of both processes together


def test_orders_found_first_are_not_sought_again(prune, whole, monkeypatch, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prune(listener=lambda event: stop_at(event, "dense"))
    assert [name for name in names(tmp_path / ".out.draft") if name.startswith("entry")] == ["entry-00000"]
    monkeypatch.setattr(blocks_module, "find_orders", None)
    prune()
    assert weights(tmp_path / "out") == whole


def stop_at(event, stage):
    if event.kind == "stage" and event.stage == stage:
        raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["magnitude", "ria_cp"])
@pytest.mark.parametrize("orders", ["fold", "gather"])
def test_methods_without_statistics_and_orders_that_are_not_folded(prune, tmp_path, method, orders):
    with pytest.raises(KeyboardInterrupt):
        prune(method=method, orders=orders, listener=Stop(3))
    again = Stop()
    prune(method=method, orders=orders, listener=again)
    prune(method=method, orders=orders, output="whole", journal=False)
    assert again.worked == {3}
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def change_text(prune, source, tmp_path, monkeypatch):
    (tmp_path / "other.txt").write_text("Another text. " * 200)
    prune(calibration=str(tmp_path / "other.txt"))


def change_windows(prune, source, tmp_path, monkeypatch):
    prune(seed=1)


def change_weights(prune, source, tmp_path, monkeypatch):
    path = source / "model.safetensors"
    content = path.read_bytes()
    with replaced(path, content[:-1] + bytes([content[-1] ^ 1])):
        prune()


def change_time_of_large_weights(prune, source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_READ_WHOLE", 0)
    shutil.rmtree(tmp_path / ".out.draft")
    with pytest.raises(KeyboardInterrupt):
        prune(listener=Stop(2))
    path = source / "model.safetensors"
    with replaced(path, path.read_bytes()):
        os.utime(path, ns=(1, 1))
        prune()


def change_config(prune, source, tmp_path, monkeypatch):
    path = source / "config.json"
    with replaced(path, json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 1e-4}).encode()):
        prune()


def change_index(prune, source, tmp_path, monkeypatch):
    table = dict.fromkeys(load_file(source / "model.safetensors"), "model.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    try:
        prune()
    finally:
        (source / "model.safetensors.index.json").unlink()


def change_versions(prune, source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "versions", lambda: {**versions(), "eggs-ptp": "9.9.9"})
    prune()


CHANGES = {
    "recipe": (lambda prune, *_: prune(pattern="4:8"), "recipe pattern was 2:4, now 4:8"),
    "method": (lambda prune, *_: prune(method="wanda"), "recipe method was eggs+, now wanda"),
    "dtype": (lambda prune, *_: prune(dtype="bfloat16"), "computing dtype was float32, now bfloat16"),
    "text": (change_text, "calibration text was "),
    "windows": (change_windows, "calibration sha256 was "),
    "weights": (change_weights, "model model.safetensors was "),
    "large": (change_time_of_large_weights, "model model.safetensors was "),
    "config": (change_config, "model config.json was "),
    "index": (change_index, "model model.safetensors.index.json was "),
    "versions": (change_versions, "versions eggs-ptp was 0.1.0, now 9.9.9"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_run_that_differs_is_refused(prune, source, stopped, tmp_path, monkeypatch, change, message):
    with pytest.raises(CheckpointError, match=r"an interrupted run in .* differs from this one") as caught:
        change(prune, source, tmp_path, monkeypatch)
    assert message in str(caught.value)
    assert str(caught.value).endswith("or start anew with --overwrite or by deleting that folder")
    assert [name for name in names(stopped) if name.startswith("entry")] == [
        "entry-00000",
        "entry-00001",
        "entry-00002",
    ]
    assert not (tmp_path / "out").exists()
    assert not hasattr(caught.value, "__notes__")


@contextmanager
def allowing(tokens):
    """While this lasts, --memory allows batches of so many tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "budget_of", lambda *_: Budget(tokens))
        yield


def test_a_larger_budget_goes_on_with_the_batches_of_the_smaller_one(prune, tmp_path):
    many = {"method": "wanda", "nsamples": 16}
    with allowing(64):
        prune(output="whole", **many)
        with pytest.raises(KeyboardInterrupt):
            prune(listener=Stop(2), **many)
    again = Stop()
    record = prune(listener=again, **many)
    assert (again.worked, record.batch_tokens) == ({2, 3}, 64)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert prune(output="free", **many).batch_tokens == 2048


def test_a_budget_too_small_for_the_batches_of_an_earlier_one_is_refused(prune, stopped):
    message = r"\(batch tokens that --memory allows was 2048, now 64\); repeat its command"
    with allowing(64), pytest.raises(CheckpointError, match=message):
        prune()


def test_overwrite_starts_anew_where_the_run_differs_and_goes_on_where_it_does_not(prune, stopped, tmp_path):
    anew, again = Stop(3), Stop()
    with pytest.raises(KeyboardInterrupt):
        prune(method="magnitude", overwrite=True, listener=anew)
    prune(method="magnitude", overwrite=True, listener=again)
    assert (anew.worked, again.worked) == ({0, 1, 2}, {3})
    prune(method="magnitude", output="whole", journal=False)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_run_without_journal_does_not_discard_one_unasked(prune, stopped, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"out: an interrupted run is kept in .*; repeat its command to go on with"
    ):
        prune(journal=False)
    assert (stopped / "entry-00002").exists()
    prune(journal=False, overwrite=True, method="magnitude")
    assert names(tmp_path) == ["out"]


DAMAGE = (
    ("entry-00000/orders.safetensors", "byte"),
    ("entry-00000/orders.safetensors", "gone"),
    ("entry-00001/facts.json", "byte"),
    ("entry-00001/facts.json", "half"),
    ("entry-00002/checks.json", "byte"),
    ("entry-00002/checks.json", "gone"),
    ("entry-00002/stream/model.safetensors", "byte"),
    ("entry-00002/stream/model.safetensors", "half"),
    ("entry-00002/stream/model.safetensors", "gone"),
    ("blocks/block-00000.safetensors", "byte"),
    ("blocks/block-00001.safetensors", "gone"),
)


def damage(path, how):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.unlink()
    if how != "gone":
        path.write_bytes(content if how == "byte" else content[: len(content) // 2])


@pytest.mark.parametrize(("file", "how"), DAMAGE)
def test_damage_is_refused(prune, stopped, tmp_path, file, how):
    damage(stopped / file, how)
    with pytest.raises(CheckpointError, match=r"has kept is damaged; start anew with --overwrite, or delete .*\.draft"):
        prune()
    assert stopped.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["byte", "half"])
def test_a_run_that_cannot_be_told_is_refused(prune, stopped, tmp_path, how):
    damage(stopped / "journal.json", how)
    with pytest.raises(CheckpointError, match=r"start anew with --overwrite"):
        prune()
    assert (stopped / "entry-00002").exists()


def test_overwrite_starts_anew_where_there_is_damage(prune, stopped, whole, tmp_path):
    damage(stopped / "blocks" / "block-00001.safetensors", "byte")
    prune(overwrite=True)
    assert weights(tmp_path / "out") == whole
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (NumericsError("NaN"), False),
        (OSError(5, "Input/output error"), True),
        (MemoryError(), True),
        (ModelError("m: cannot be read"), True),
    ],
)
def test_what_the_same_run_would_meet_again_leaves_nothing(prune, tmp_path, error, kept):
    with pytest.raises(CheckpointError if isinstance(error, OSError) else type(error)):  # with the file's name
        prune(method="magnitude", listener=Stop(2, error))
    assert names(tmp_path) == ([".out.draft"] if kept else [])


def test_ctrl_c_prints_the_command_that_goes_on(source, text_file, tmp_path, monkeypatch, capsys):
    output, stop = tmp_path / "my out", Stop(2)
    words = ["prune", source, "-o", output, "--method", "wanda", "--calibration", text_file, "--nsamples", 4]
    command = [str(word) for word in words]
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "listen", lambda self, event: stop(event))
        assert main(command) == 130
    *_, kept, last = capsys.readouterr().err.splitlines()
    folder = tmp_path / ".my out.draft"
    assert kept == f"eggs: 2 finished blocks are kept in {folder}; the same command goes on from there: " + shlex.join(
        ["eggs", *command]
    )
    assert last == "eggs: interrupted"
    assert main([*command, "--no-journal"]) == 2
    assert "an interrupted run is kept in" in capsys.readouterr().err
    assert main(command) == 0
    assert f"Going on behind block 2 of 4, finished earlier ({output})" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--no-journal"]) == 0
    assert names(tmp_path) == ["my out"]


def test_an_interruption_before_the_first_block_leaves_nothing(prune, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prune(method="wanda", listener=lambda event: stop_at(event, "observe"))
    assert names(tmp_path) == []


def test_without_room_no_journal_is_kept_and_that_is_said(prune, monkeypatch, tmp_path):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100_000))
    watch = Stop(2)
    with pytest.raises(KeyboardInterrupt):
        prune(listener=watch)
    (remark,) = watch.remarks
    assert remark.startswith(f"No journal is kept: {tmp_path} has 0.0 GB free")
    assert names(tmp_path) == []


@pytest.mark.parametrize("one_file", [True, False])
def test_a_failure_at_the_very_end_loses_nothing(prune, monkeypatch, tmp_path, one_file):
    settings = {"method": "ria_cp"}
    if not one_file:
        monkeypatch.setattr(draft_module, "_ONE_FILE", 1000)

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(draft_module, "flush", full)
        with pytest.raises(CheckpointError, match=r"out: cannot be written \(No space left on device\)"):
            prune(**settings)
    again = Stop()
    prune(listener=again, **settings)
    prune(output="whole", journal=False, **settings)
    assert again.worked == set()
    assert len(weights(tmp_path / "out")) == (2 if one_file else BLOCKS + 2)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interruption_while_the_last_shard_is_written_loses_nothing(prune, whole, monkeypatch, tmp_path, overwrite):
    monkeypatch.setattr(draft_module, "_ONE_FILE", 1000)

    put_rows = draft_module.Stream.put_rows

    def stop(stream, name, parts):
        if name == "model.norm.weight":
            raise KeyboardInterrupt
        put_rows(stream, name, parts)

    with monkeypatch.context() as patch:
        patch.setattr(draft_module.Stream, "put_rows", stop)
        with pytest.raises(KeyboardInterrupt) as caught:
            prune()
    assert f"{BLOCKS} finished blocks are kept" in caught.value.__notes__[0]
    again = Stop()
    prune(listener=again, overwrite=overwrite)
    assert again.worked == set()
    assert names(tmp_path) == ["out"]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == BLOCKS + 1


@contextmanager
def disk_of(folder, size):
    """A file system of `size` bytes; skips where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_once_there_is_room(prune, whole, tmp_path):
    with disk_of(tmp_path / "disk", 1 << 20) as disk:
        previous = tiny_model(disk / "out", "mistral", hidden_size=16, intermediate_size=16, num_hidden_layers=1)
        before = {path.name: path.read_bytes() for path in previous.iterdir()}
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(440_000))

        def fill(event):
            if event.kind == "block" and event.block == 2:
                with ballast.open("ab") as file:
                    file.write(bytes(shutil.disk_usage(disk).free - 20_000))

        with pytest.raises(CheckpointError, match=r"cannot be written \(.*No space left on device.*\)") as caught:
            prune(output="disk/out", overwrite=True, listener=fill)
        assert "2 finished blocks are kept" in caught.value.__notes__[0]
        assert {path.name: path.read_bytes() for path in previous.iterdir()} == before
        ballast.unlink()
        again = Stop()
        prune(output="disk/out", overwrite=True, listener=again)
        assert again.worked == {2, 3}
        assert names(disk) == ["out"]
        assert weights(disk / "out") == whole


def test_a_model_that_breaks_off_is_named_and_output_and_journal_stay(prune, source, stopped, tmp_path):
    before = weights(shutil.copytree(source, tmp_path / "out"))
    path = source / "model.safetensors"
    with (
        replaced(path, path.read_bytes()[:-1000]),
        pytest.raises(ModelError, match=r"model\.safetensors: not a readable safetensors file"),
    ):
        prune(overwrite=True)
    assert weights(tmp_path / "out") == before
    assert (stopped / "entry-00002").exists()


def test_a_leftover_of_exports_is_no_journal(tmp_path):
    (tmp_path / ".out.draft" / "entry-00001").mkdir(parents=True)
    with Draft(tmp_path / "out"):
        assert names(tmp_path / ".out.draft") == ["blocks", "folder", "lock"]
    assert names(tmp_path) == []
