"""Several processes write the same checkpoint as one process, or end with one line and a journal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from launched_processes import LaunchedProcesses, content
from safetensors.torch import load_file, save_file

WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}  # its MLP is cut into row tiles
METHODS = ["wanda", "stochria", "sparsegpt", "eggs", "eggs+", "eggs-max"]


@pytest.fixture
def prune(tiny, text_file, tmp_path):
    """`prune("out", 2, "eggs")`: start two processes."""

    def start(name, count, method, *flags, model="llama", **changes):
        source = model if isinstance(model, Path) else tiny(model, **changes)
        common = ("--calibration", text_file, "--nsamples", 8, "--seqlen", 64)
        arguments = ("prune", source, "-o", tmp_path / name, "--method", method, *common, *flags)
        return LaunchedProcesses(count, tmp_path / name, arguments)

    return start


def check_equal_outputs(prune, tmp_path, method, counts, **model):
    outputs = {}
    for count in (1, *counts):
        assert prune(f"out-{count}", count, method, **model).exit_codes() == [0] * count
        outputs[count] = content(tmp_path / f"out-{count}")
    for count in counts:
        assert outputs[count] == outputs[1]


@pytest.mark.parametrize(("method", "count"), [("eggs+", 2), ("eggs", 4)])
def test_several_processes_write_the_same_as_one(prune, tmp_path, method, count):
    check_equal_outputs(prune, tmp_path, method, [count])


def test_experts_see_the_tokens_of_all_processes(prune, tmp_path):
    check_equal_outputs(prune, tmp_path, "eggs", [2], model="mixtral")


def test_several_processes_share_the_rows_of_a_matrix(prune, tmp_path):
    check_equal_outputs(prune, tmp_path, "eggs+", [2], **WIDE)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["alps", "wanda+pcg", "eggs+"])
def test_one_to_four_processes_share_rows(prune, tmp_path, method):
    check_equal_outputs(prune, tmp_path, method, [2, 3, 4], **WIDE)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["llama", "qwen2_moe", "gpt2", "opt-350m"])
def test_one_to_four_processes_write_the_same(prune, tmp_path, method, model):
    check_equal_outputs(prune, tmp_path, method, [2, 3, 4], model=model)


def killed_run(prune, method, rank, count, changes):
    """A run, one of whose processes was killed after the first block."""
    run = prune("out", count, method, **changes)
    while run.journal_entries() < 2 and run.processes[rank].is_alive():
        time.sleep(0.001)
    run.processes[rank].kill()
    return run


@pytest.mark.parametrize(
    ("rank", "count", "resuming_count", "width"),
    [
        (1, 2, 3, {}),
        pytest.param(0, 2, 1, {}, marks=pytest.mark.slow),
        pytest.param(1, 2, 4, WIDE, marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_ends_the_run_and_any_number_resumes(prune, tmp_path, rank, count, resuming_count, width):
    changes = {"num_hidden_layers": 6, **width}
    run = killed_run(prune, "eggs+", rank, count, changes)
    assert run.exit_codes() == [-9 if other == rank else 2 for other in range(count)]
    *note, error = run.messages(1 - rank)
    assert "another of the 2 processes of this run ended without a message" in error
    assert run.messages(rank) == []
    if rank:
        assert "finished blocks are kept in" in note[0]
        assert f"torchrun --nproc-per-node {count} -m eggs_ptp prune" in note[0]
    assert not run.output.exists()
    assert run.journal_entries() >= 2
    assert prune("uninterrupted", 1, "eggs+", **changes).exit_codes() == [0]
    assert prune("out", resuming_count, "eggs+", **changes).exit_codes() == [0] * resuming_count
    assert content(tmp_path / "out") == content(tmp_path / "uninterrupted")


def test_an_error_of_one_process_is_printed_once(prune, tiny, tmp_path):
    """A token of the last window alone has an embedding of NaN."""
    source = tmp_path / "source"
    source.mkdir()
    for file in tiny().iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    windows = torch.arange(8 * 16).view(8, 16)
    np.save(tmp_path / "windows.npy", windows.numpy())
    weights = load_file(source / "model.safetensors")
    weights["model.embed_tokens.weight"][8 * 16 - 1] = torch.nan
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    run = prune("out", 2, "wanda", "--calibration", tmp_path / "windows.npy", model=source)
    assert run.exit_codes() == [2, 2]
    assert len(run.messages(0)) == 1
    assert "embeddings of the calibration tokens hold NaN" in run.messages(0)[0]
    assert run.messages(1) == []
    assert not [path for path in tmp_path.iterdir() if "out" in path.name and path.is_dir()]


def test_what_cannot_be_divided_is_refused(prune, tmp_path):
    few = prune("few", 2, "wanda", "--nsamples", 3)
    trials = prune("trials", 2, "wanda", "--try", "seed=0,1")
    size = prune("size", 2, "wanda", "--memory", "foo")
    device = prune("device", 2, "wanda", "--device", "cuda:99")
    other = LaunchedProcesses(2, tmp_path / "other", ["methods"])
    assert few.exit_codes() == trials.exit_codes() == size.exit_codes() == device.exit_codes() == [2, 2]
    assert other.exit_codes() == [2, 0]
    assert "3 calibration windows cannot be divided over 2 processes" in few.messages(0)[0]
    assert "--try: got 2 processes, but trials run in one" in trials.messages(0)[0]
    assert "only eggs prune shares its work" in other.messages(0)[0]
    assert "--memory: expected a size such as" in size.messages(0)[0]
    assert "device 'cuda:99' cannot be used here" in device.messages(0)[0]
    assert few.messages(1) == trials.messages(1) == size.messages(1) == device.messages(1) == other.messages(1) == []


@pytest.mark.slow
def test_runs_started_by_torchrun(tiny, text_file, tmp_path):
    """Uninterrupted, and with one process killed: torchrun ends the rest, and the same command resumes."""
    arguments = ["prune", tiny(num_hidden_layers=24), "--calibration", text_file, "--nsamples", 16, "--seqlen", 64]

    def start(count, output):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
        command = [str(word) for word in (*torchrun, "-m", "eggs_ptp", *arguments, "-o", tmp_path / output)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (tmp_path / "stderr.txt").open("w") as stderr:
            return subprocess.Popen(command, stderr=stderr, stdout=subprocess.DEVNULL, env=environment)

    for count in (1, 2):
        assert start(count, f"uninterrupted-{count}").wait(240) == 0
    run = start(2, "out")
    entry = tmp_path / ".out.draft" / "entry-00003"
    while not entry.exists() and run.poll() is None:
        time.sleep(0.01)
    os.kill(process_of_rank(run.pid, 1), signal.SIGKILL)
    assert run.wait(120)
    messages = (tmp_path / "stderr.txt").read_text()
    assert "finished blocks are kept in" in messages
    assert messages.count("eggs: error:") == 1
    assert start(4, "out").wait(240) == 0
    assert content(tmp_path / "uninterrupted-1") == content(tmp_path / "uninterrupted-2") == content(tmp_path / "out")


def process_of_rank(launcher, rank):
    return next(child.pid for child in psutil.Process(launcher).children() if child.environ().get("RANK") == str(rank))
