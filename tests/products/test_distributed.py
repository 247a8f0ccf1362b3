"""Several processes make the very checkpoint that one makes, or end with one line and a journal."""

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
from launched import Launched, content
from safetensors.torch import load_file, save_file

WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}  # its MLP is cut into slabs
METHODS = ["wanda", "stochria", "sparsegpt", "eggs", "eggs+", "eggs-max"]


@pytest.fixture
def prune(tiny, text_file, tmp_path):
    """`prune("out", 2, "eggs")`: two ranks at work."""

    def start(name, count, method, *flags, model="llama", **changes):
        source = model if isinstance(model, Path) else tiny(model, **changes)
        common = ("--calibration", text_file, "--nsamples", 8, "--seqlen", 64)
        words = ("prune", source, "-o", tmp_path / name, "--method", method, *common, *flags)
        return Launched(count, tmp_path / name, words)

    return start


def same(prune, tmp_path, method, counts, **model):
    made = {}
    for count in (1, *counts):
        assert prune(f"out-{count}", count, method, **model).codes() == [0] * count
        made[count] = content(tmp_path / f"out-{count}")
    for count in counts:
        assert made[count] == made[1]


@pytest.mark.parametrize(("method", "count"), [("eggs+", 2), ("eggs", 4)])
def test_several_processes_write_what_one_writes(prune, tmp_path, method, count):
    same(prune, tmp_path, method, [count])


def test_experts_see_the_tokens_of_all_processes(prune, tmp_path):
    same(prune, tmp_path, "eggs", [2], model="mixtral")


def test_several_processes_share_the_rows_of_a_matrix(prune, tmp_path):
    same(prune, tmp_path, "eggs+", [2], **WIDE)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["alps", "wanda+pcg", "eggs+"])
def test_one_to_four_processes_share_rows(prune, tmp_path, method):
    same(prune, tmp_path, method, [2, 3, 4], **WIDE)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["llama", "qwen2_moe", "gpt2", "opt-350m"])
def test_one_to_four_processes_write_the_same(prune, tmp_path, method, model):
    same(prune, tmp_path, method, [2, 3, 4], model=model)


def killed(prune, method, rank, count, changes):
    """A run one of whose processes was killed behind the first block."""
    run = prune("out", count, method, **changes)
    while run.entries() < 2 and run.processes[rank].is_alive():
        time.sleep(0.001)
    run.processes[rank].kill()
    return run


@pytest.mark.parametrize(
    ("rank", "count", "then", "width"),
    [
        (1, 2, 3, {}),
        pytest.param(0, 2, 1, {}, marks=pytest.mark.slow),
        pytest.param(1, 2, 4, WIDE, marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_ends_the_run_and_any_number_goes_on(prune, tmp_path, rank, count, then, width):
    changes = {"num_hidden_layers": 6, **width}
    run = killed(prune, "eggs+", rank, count, changes)
    assert run.codes() == [-9 if other == rank else 2 for other in range(count)]
    *note, error = run.said(1 - rank)
    assert "another of the 2 processes of this run has ended without a word" in error
    assert run.said(rank) == []
    if rank:
        assert "finished blocks are kept in" in note[0]
        assert f"torchrun --nproc-per-node {count} -m eggs_ptp prune" in note[0]
    assert not run.output.exists()
    assert run.entries() >= 2
    assert prune("whole", 1, "eggs+", **changes).codes() == [0]
    assert prune("out", then, "eggs+", **changes).codes() == [0] * then
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_what_goes_wrong_on_one_process_is_said_once(prune, tiny, tmp_path):
    """A token of the last window alone has an embedding that is no number."""
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
    assert run.codes() == [2, 2]
    assert len(run.said(0)) == 1
    assert "embeddings of the calibration tokens hold NaN" in run.said(0)[0]
    assert run.said(1) == []
    assert not [path for path in tmp_path.iterdir() if "out" in path.name and path.is_dir()]


def test_what_cannot_be_shared_out_is_refused(prune, tmp_path):
    few = prune("few", 2, "wanda", "--nsamples", 3)
    tried = prune("tried", 2, "wanda", "--try", "seed=0,1")
    size = prune("size", 2, "wanda", "--memory", "foo")
    place = prune("place", 2, "wanda", "--device", "cuda:99")
    other = Launched(2, tmp_path / "other", ["methods"])
    assert few.codes() == tried.codes() == size.codes() == place.codes() == [2, 2]
    assert other.codes() == [2, 0]
    assert "3 calibration windows cannot be shared out over 2 processes" in few.said(0)[0]
    assert "--try is for one process" in tried.said(0)[0]
    assert "only eggs prune shares its work" in other.said(0)[0]
    assert "--memory: expected a size such as" in size.said(0)[0]
    assert "device 'cuda:99' cannot be used here" in place.said(0)[0]
    assert few.said(1) == tried.said(1) == size.said(1) == place.said(1) == other.said(1) == []


@pytest.mark.slow
def test_torchrun_itself(tiny, text_file, tmp_path):
    """Whole, and with one process killed: torchrun ends the rest, and the run goes on."""
    words = ["prune", tiny(num_hidden_layers=24), "--calibration", text_file, "--nsamples", 16, "--seqlen", 64]

    def torchrun(count, output):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
        given = [str(word) for word in (*command, "-m", "eggs_ptp", *words, "-o", tmp_path / output)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (tmp_path / "said").open("w") as said:
            return subprocess.Popen(given, stderr=said, stdout=subprocess.DEVNULL, env=environment)

    for count in (1, 2):
        assert torchrun(count, f"whole-{count}").wait(240) == 0
    run, entry = torchrun(2, "out"), tmp_path / ".out.draft" / "entry-00003"
    while not entry.exists() and run.poll() is None:
        time.sleep(0.01)
    os.kill(rank_of(run.pid, 1), signal.SIGKILL)
    assert run.wait(120)
    said = (tmp_path / "said").read_text()
    assert "finished blocks are kept in" in said
    assert said.count("eggs: error:") == 1
    assert torchrun(4, "out").wait(240) == 0
    assert content(tmp_path / "whole-1") == content(tmp_path / "whole-2") == content(tmp_path / "out")


def rank_of(launcher, rank):
    """The process of a rank."""
    return next(child.pid for child in psutil.Process(launcher).children() if child.environ().get("RANK") == str(rank))
