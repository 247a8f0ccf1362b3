"""The journal of an unfinished run: what it keeps, what it refuses, and that it is deleted in the end."""

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
from eggs_ptp.checkpoint import block_writer as block_writer_module
from eggs_ptp.checkpoint import journal as journal_module
from eggs_ptp.checkpoint import staging as staging_module
from eggs_ptp.checkpoint.run_record import versions
from eggs_ptp.checkpoint.staging import StagingFolder
from eggs_ptp.cli.main import main
from eggs_ptp.cli.terminal import Progress
from eggs_ptp.engine.planning import make_plan as make_plan_module
from eggs_ptp.engine.planning.memory_budget import Budget
from eggs_ptp.errors import CheckpointError, ModelError, NumericsError

BLOCKS = 4
SETTINGS = {"method": "eggs+", "nsamples": 4, "seqlen": 32}


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    """A model whose files tests change for a while."""
    folder = tmp_path_factory.mktemp("source") / "model"
    return shutil.copytree(tiny("llama", num_hidden_layers=BLOCKS), folder)


@pytest.fixture(scope="module")
def prune_to(source, text_file):
    """`prune_to(folder)`: prune with a journal."""

    def run(folder, **changes):
        return api.prune(str(source), folder, **{"journal": True, "calibration": str(text_file), **SETTINGS, **changes})

    return run


@pytest.fixture
def prune(prune_to, tmp_path):
    """`prune()`: prune to tmp_path/out."""
    return lambda output="out", **changes: prune_to(tmp_path / output, **changes)


@pytest.fixture(scope="module")
def uninterrupted(prune_to, tmp_path_factory):
    """The weights that an uninterrupted run writes."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "out"
    prune_to(folder, journal=False)
    return weights(folder)


@pytest.fixture(scope="module")
def interrupted_journal(prune_to, tmp_path_factory):
    """The working directory of a run that was interrupted after its second block."""
    folder = tmp_path_factory.mktemp("interrupted") / "out"
    with pytest.raises(KeyboardInterrupt) as caught:
        prune_to(folder, listener=RunListener(2))
    journal = folder.parent / ".out.draft"
    assert caught.value.__notes__ == [f"2 finished blocks are kept in {journal}; the same command resumes from there"]
    return journal


@pytest.fixture
def journal(interrupted_journal, tmp_path):
    """A copy of it for tmp_path/out."""
    return shutil.copytree(interrupted_journal, tmp_path / ".out.draft")


@contextmanager
def replaced(path, content):
    """Replace the content of a file for a while; its time of modification is restored too."""
    before = path.read_bytes()
    stat = path.stat()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


class RunListener:
    """Records in which blocks matrices were pruned, and ends the run once `after` blocks are finished."""

    def __init__(self, after=None, error=KeyboardInterrupt):
        self.after = after
        self.error = error
        self.pruned_blocks = set()
        self.remarks = []

    def __call__(self, event):
        if event.kind == "matrix":
            self.pruned_blocks.add(event.block)
        if event.kind == "remark":
            self.remarks.append(event.stage)
        if event.kind == "block" and event.block == self.after:
            raise self.error


def weights(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def entry_names(folder):
    return [name for name in names(folder) if name.startswith("entry")]


def test_only_the_last_entry_has_hidden_states_and_they_are_exact(prune, source, tmp_path):
    stored = []

    def listener(event):
        if event.kind != "block":
            return
        folder = tmp_path / ".out.draft"
        has_hidden_states = [(folder / name / "stream").exists() for name in entry_names(folder)]
        assert has_hidden_states == [*[False] * event.block, event.block < BLOCKS]
        if event.block < BLOCKS:
            stored.append(load_file(folder / f"entry-{event.block:05d}" / "stream" / "model.safetensors"))

    windows = torch.randint(0, 256, (3, 32), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "windows.npy", windows.numpy())
    prune(listener=listener, calibration=str(tmp_path / "windows.npy"))
    assert [hidden_states.keys() for hidden_states in stored] == [{"hidden", "dense"}] * (BLOCKS - 1)
    assert {tensor.dtype for hidden_states in stored for tensor in hidden_states.values()} == {torch.float32}
    model, _ = api.load(source)
    with torch.inference_mode():
        hidden = model(windows, output_hidden_states=True).hidden_states
    for index, hidden_states in enumerate(stored, 1):
        assert torch.allclose(hidden_states["dense"], hidden[index], atol=1e-4)
        assert not torch.allclose(hidden_states["hidden"], hidden[index], atol=1e-4)


def test_a_run_resumes_after_the_last_finished_block_and_deletes_its_journal(prune, journal, uninterrupted, tmp_path):
    resumed = RunListener()
    record = prune(listener=resumed)
    assert resumed.pruned_blocks == {2, 3}
    assert resumed.remarks == [f"resuming after block 2 of 4 ({tmp_path / 'out'})"]
    assert weights(tmp_path / "out") == uninterrupted
    assert names(tmp_path) == ["out"]
    assert {"order", "journal"} <= record.stages.keys()  # of both processes together


def test_permutations_of_the_journal_are_not_searched_again(prune, uninterrupted, monkeypatch, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prune(listener=lambda event: stop_at(event, "dense"))
    assert entry_names(tmp_path / ".out.draft") == ["entry-00000"]
    monkeypatch.setattr(block_writer_module, "find_permutations", None)
    prune()
    assert weights(tmp_path / "out") == uninterrupted


def stop_at(event, stage):
    if event.kind == "stage" and event.stage == stage:
        raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["magnitude", "ria_cp"])
@pytest.mark.parametrize("permutation", ["fold", "gather"])
def test_runs_without_statistics_and_without_folding_resume(prune, tmp_path, method, permutation):
    with pytest.raises(KeyboardInterrupt):
        prune(method=method, permutation=permutation, listener=RunListener(3))
    resumed = RunListener()
    prune(method=method, permutation=permutation, listener=resumed)
    prune(method=method, permutation=permutation, output="uninterrupted", journal=False)
    assert resumed.pruned_blocks == {3}
    assert weights(tmp_path / "out") == weights(tmp_path / "uninterrupted")


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


def change_modification_time_of_large_weights(prune, source, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "MAX_HASHED_WEIGHT_BYTES", 0)
    shutil.rmtree(tmp_path / ".out.draft")
    with pytest.raises(KeyboardInterrupt):
        prune(listener=RunListener(2))
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
    monkeypatch.setattr(journal_module, "versions", lambda: {**versions(), "eggs-ptp": "9.9.9"})
    prune()


CHANGES = {
    "recipe": (lambda prune, *_: prune(pattern="4:8"), "recipe pattern was 2:4, now 4:8"),
    "method": (lambda prune, *_: prune(method="wanda"), "recipe method was eggs+, now wanda"),
    "dtype": (lambda prune, *_: prune(dtype="bfloat16"), "computing dtype was float32, now bfloat16"),
    "text": (change_text, "calibration text was "),
    "windows": (change_windows, "calibration sha256 was "),
    "weights": (change_weights, "model model.safetensors was "),
    "large": (change_modification_time_of_large_weights, "model model.safetensors was "),
    "config": (change_config, "model config.json was "),
    "index": (change_index, "model model.safetensors.index.json was "),
    "versions": (change_versions, "versions eggs-ptp was 0.1.0, now 9.9.9"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_run_that_differs_is_refused(prune, source, journal, tmp_path, monkeypatch, change, message):
    with pytest.raises(CheckpointError, match=r"an interrupted run in .* differs from this one") as caught:
        change(prune, source, tmp_path, monkeypatch)
    assert message in str(caught.value)
    assert str(caught.value).endswith("or start again with --overwrite or by deleting that folder")
    assert entry_names(journal) == ["entry-00000", "entry-00001", "entry-00002"]
    assert not (tmp_path / "out").exists()
    assert not hasattr(caught.value, "__notes__")


@contextmanager
def batch_budget(tokens):
    """Make --memory allow batches of this many tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_plan_module, "fit_budget", lambda *_: Budget(tokens))
        yield


def test_a_run_with_a_larger_budget_resumes_with_the_batches_of_the_smaller_one(prune, tmp_path):
    settings = {"method": "wanda", "nsamples": 16}
    with batch_budget(64):
        prune(output="uninterrupted", **settings)
        with pytest.raises(KeyboardInterrupt):
            prune(listener=RunListener(2), **settings)
    resumed = RunListener()
    record = prune(listener=resumed, **settings)
    assert (resumed.pruned_blocks, record.batch_tokens) == ({2, 3}, 64)
    assert weights(tmp_path / "out") == weights(tmp_path / "uninterrupted")
    assert prune(output="larger", **settings).batch_tokens == 2048


def test_a_budget_too_small_for_the_batches_of_an_earlier_one_is_refused(prune, journal):
    message = r"\(batch tokens that --memory allows was 2048, now 64\); repeat its command"
    with batch_budget(64), pytest.raises(CheckpointError, match=message):
        prune()


def test_overwrite_starts_again_if_the_run_differs_and_resumes_if_it_does_not(prune, journal, tmp_path):
    restarted = RunListener(3)
    resumed = RunListener()
    with pytest.raises(KeyboardInterrupt):
        prune(method="magnitude", overwrite=True, listener=restarted)
    prune(method="magnitude", overwrite=True, listener=resumed)
    assert (restarted.pruned_blocks, resumed.pruned_blocks) == ({0, 1, 2}, {3})
    prune(method="magnitude", output="uninterrupted", journal=False)
    assert weights(tmp_path / "out") == weights(tmp_path / "uninterrupted")


def test_a_run_without_journal_discards_one_only_with_overwrite(prune, journal, tmp_path):
    with pytest.raises(CheckpointError, match=r"out: an interrupted run is kept in .*; repeat its command to resume"):
        prune(journal=False)
    assert (journal / "entry-00002").exists()
    prune(journal=False, overwrite=True, method="magnitude")
    assert names(tmp_path) == ["out"]


DAMAGE = (
    ("entry-00000/orders.safetensors", "changed"),
    ("entry-00000/orders.safetensors", "missing"),
    ("entry-00001/facts.json", "changed"),
    ("entry-00001/facts.json", "truncated"),
    ("entry-00002/checks.json", "changed"),
    ("entry-00002/checks.json", "missing"),
    ("entry-00002/stream/model.safetensors", "changed"),
    ("entry-00002/stream/model.safetensors", "truncated"),
    ("entry-00002/stream/model.safetensors", "missing"),
    ("blocks/block-00000.safetensors", "changed"),
    ("blocks/block-00001.safetensors", "missing"),
)


def damage(path, kind):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.unlink()
    if kind != "missing":
        path.write_bytes(content if kind == "changed" else content[: len(content) // 2])


@pytest.mark.parametrize(("file", "kind"), DAMAGE)
def test_a_damaged_journal_is_refused(prune, journal, tmp_path, file, kind):
    damage(journal / file, kind)
    message = r"journal of an interrupted run is damaged; start again with --overwrite, or delete .*\.draft"
    with pytest.raises(CheckpointError, match=message):
        prune()
    assert journal.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["changed", "truncated"])
def test_a_journal_with_a_damaged_identity_is_refused(prune, journal, tmp_path, kind):
    damage(journal / "journal.json", kind)
    with pytest.raises(CheckpointError, match=r"start again with --overwrite"):
        prune()
    assert (journal / "entry-00002").exists()


def test_overwrite_starts_again_if_the_journal_is_damaged(prune, journal, uninterrupted, tmp_path):
    damage(journal / "blocks" / "block-00001.safetensors", "changed")
    prune(overwrite=True)
    assert weights(tmp_path / "out") == uninterrupted
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (NumericsError("NaN"), False),
        (OSError(5, "Input/output error"), True),
        (MemoryError(), True),
        (ModelError("m: cannot be read"), True),
    ],
)
def test_errors_that_the_same_command_would_repeat_keep_no_journal(prune, tmp_path, error, is_kept):
    with pytest.raises(CheckpointError if isinstance(error, OSError) else type(error)):  # with the file's name
        prune(method="magnitude", listener=RunListener(2, error))
    assert names(tmp_path) == ([".out.draft"] if is_kept else [])


def test_ctrl_c_prints_the_command_that_resumes(source, text_file, tmp_path, monkeypatch, capsys):
    output = tmp_path / "my out"
    stop = RunListener(2)
    arguments = ["prune", source, "-o", output, "--method", "wanda", "--calibration", text_file, "--nsamples", 4]
    command = [str(argument) for argument in arguments]
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "listen", lambda self, event: stop(event))
        assert main(command) == 130
    *_, note, last = capsys.readouterr().err.splitlines()
    folder = tmp_path / ".my out.draft"
    repeated = shlex.join(["eggs", *command])
    assert note == f"eggs: 2 finished blocks are kept in {folder}; the same command resumes from there: {repeated}"
    assert last == "eggs: interrupted"
    assert main([*command, "--no-journal"]) == 2
    assert "an interrupted run is kept in" in capsys.readouterr().err
    assert main(command) == 0
    assert f"resuming after block 2 of 4 ({output})" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--no-journal"]) == 0
    assert names(tmp_path) == ["my out"]


def test_an_interruption_before_the_first_block_leaves_nothing(prune, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prune(method="wanda", listener=lambda event: stop_at(event, "observe"))
    assert names(tmp_path) == []


def test_without_disk_space_no_journal_is_kept_and_a_remark_says_so(prune, monkeypatch, tmp_path):
    usage = namedtuple("usage", "free")
    # Plenty when the run begins; other programs fill the disk until the journal is opened in its draft folder.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100_000 if path.name == ".out.draft" else 10**12))
    listener = RunListener(2)
    with pytest.raises(KeyboardInterrupt):
        prune(listener=listener)
    (remark,) = listener.remarks
    assert remark.startswith(f"no journal is kept: {tmp_path} has 100.0 kB free")
    assert names(tmp_path) == []


@pytest.mark.parametrize("one_file", [True, False])
def test_a_failure_in_the_last_step_loses_nothing(prune, monkeypatch, tmp_path, one_file):
    settings = {"method": "ria_cp"}
    if not one_file:
        monkeypatch.setattr(staging_module, "MAX_SINGLE_FILE_BYTES", 1000)

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(staging_module, "flush", full)
        with pytest.raises(CheckpointError, match=r"out: cannot be written \(No space left on device\)"):
            prune(**settings)
    resumed = RunListener()
    prune(listener=resumed, **settings)
    prune(output="uninterrupted", journal=False, **settings)
    assert resumed.pruned_blocks == set()
    assert len(weights(tmp_path / "out")) == (2 if one_file else BLOCKS + 2)
    assert weights(tmp_path / "out") == weights(tmp_path / "uninterrupted")


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interruption_while_the_last_shard_is_written_loses_nothing(
    prune, uninterrupted, monkeypatch, tmp_path, overwrite
):
    monkeypatch.setattr(staging_module, "MAX_SINGLE_FILE_BYTES", 1000)

    put_rows = staging_module.SafetensorsWriter.put_rows

    def interrupting_put_rows(writer, name, rows):
        if name == "model.norm.weight":
            raise KeyboardInterrupt
        put_rows(writer, name, rows)

    with monkeypatch.context() as patch:
        patch.setattr(staging_module.SafetensorsWriter, "put_rows", interrupting_put_rows)
        with pytest.raises(KeyboardInterrupt) as caught:
            prune()
    assert f"{BLOCKS} finished blocks are kept" in caught.value.__notes__[0]
    resumed = RunListener()
    prune(listener=resumed, overwrite=overwrite)
    assert resumed.pruned_blocks == set()
    assert names(tmp_path) == ["out"]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == BLOCKS + 1


@contextmanager
def disk_of(folder, size):
    """Mount a file system of `size` bytes; skips if none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_run_that_fills_the_disk_resumes_once_there_is_space(prune, uninterrupted, tmp_path):
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
        resumed = RunListener()
        prune(output="disk/out", overwrite=True, listener=resumed)
        assert resumed.pruned_blocks == {2, 3}
        assert names(disk) == ["out"]
        assert weights(disk / "out") == uninterrupted


def test_a_truncated_model_is_named_and_output_and_journal_stay(prune, source, journal, tmp_path):
    before = weights(shutil.copytree(source, tmp_path / "out"))
    path = source / "model.safetensors"
    with (
        replaced(path, path.read_bytes()[:-1000]),
        pytest.raises(ModelError, match=r"model\.safetensors: not a readable safetensors file"),
    ):
        prune(overwrite=True)
    assert weights(tmp_path / "out") == before
    assert (journal / "entry-00002").exists()


def test_entries_without_an_identity_are_no_journal(tmp_path):
    (tmp_path / ".out.draft" / "entry-00001").mkdir(parents=True)
    with StagingFolder(tmp_path / "out"):
        assert names(tmp_path / ".out.draft") == ["blocks", "folder", "lock"]
    assert names(tmp_path) == []
