"""Runs that are killed at any time, and resume to the same output as an uninterrupted run."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter

import pytest
from launched_processes import content

METHODS = {  # in turn: one stream of hidden states; a permutation found first; the dense stream too; tuned blocks
    "wanda": ("--method", "wanda"),
    "eggs": ("--method", "eggs"),
    "eggs+": ("--method", "eggs+"),
    "eggs-max": ("--method", "eggs-max"),
}
PRELOADED = [
    "eggs_ptp.api",
    "eggs_ptp.cli.program",
    "eggs_ptp.cli.terminal",
    "transformers.models.llama.modeling_llama",
]
# Ctrl-C must work even if the tests run in the background, where a shell makes its jobs ignore it.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from eggs_ptp.cli.main import main
sys.exit(main({!r}))
"""
SEED = 7


@pytest.fixture(scope="module")
def start(tiny, text_file):
    """`start("eggs", folder)`: start a process that prunes into the folder, with everything imported beforehand."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    models = {blocks: tiny("llama", num_hidden_layers=blocks) for blocks in (4, 6)}

    def started(method, output, *flags, blocks=6):
        common = ("--calibration", text_file, "--nsamples", 16, "--seqlen", 64, "--json")
        words = [str(word) for word in ("prune", models[blocks], "-o", output, *METHODS[method], *common, *flags)]
        process = processes.Process(target=exec, args=(COMMAND.format(words),))
        process.start()
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # before the server starts
        yield started


def finish(process, code=0):
    process.join(120)
    assert process.exitcode == code


def entries(output):
    """Return how many entries the journal of an unfinished run has."""
    return len(list(output.parent.glob(f".{output.name}.draft/entry-?????")))


@pytest.mark.parametrize("method", ["wanda", "eggs", "eggs+"])
def test_a_killed_run_resumes_to_the_same_output(start, tmp_path, method):
    finish(start(method, tmp_path / "uninterrupted", blocks=4))
    output = tmp_path / "out"
    rng = random.Random(SEED + len(method))  # noqa: S311
    entries_before_kill = rng.randint(1, 3)
    process = start(method, output, blocks=4)
    while entries(output) < entries_before_kill and process.is_alive():
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    process.kill()
    finish(process, -9)
    assert not output.exists()
    assert entries(output) >= entries_before_kill
    finish(start(method, output, blocks=4))
    assert content(output) == content(tmp_path / "uninterrupted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "uninterrupted"]


def test_ctrl_c_ends_the_run_at_once_and_keeps_finished_blocks(start, tmp_path):
    finish(start("wanda", tmp_path / "uninterrupted"))
    output = tmp_path / "out"
    process = start("wanda", output)
    while not entries(output) and process.is_alive():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    finish(process, 130)
    assert entries(output)
    assert not output.exists()
    finish(start("wanda", output))
    assert content(output) == content(tmp_path / "uninterrupted")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills(start, tmp_path):
    """Until 50 kills have hit work in progress; a run is killed up to four times before it may end."""
    rng = random.Random(SEED)  # noqa: S311
    hits = 0
    rounds = 0
    outcomes = Counter()
    expected = {}
    seconds = {}
    for method in METHODS:
        folder = tmp_path / f"uninterrupted-{method}"
        for _ in range(2):  # the first run waits for the server
            began = time.perf_counter()
            finish(start(method, folder, *(("--overwrite",) if folder.exists() else ())))
            seconds[method] = time.perf_counter() - began
        expected[method] = content(folder)
    previous = content(tmp_path / "uninterrupted-wanda")
    while hits < 50:
        method = list(METHODS)[rounds % 4]
        replaces = rounds % 3 == 2
        output = tmp_path / f"out-{rounds}"
        rounds += 1
        if replaces:
            shutil.copytree(tmp_path / "uninterrupted-wanda", output)
        done = False
        kills = rng.randint(1, 4)
        while not done:
            entries_before = entries(output)
            process = start(method, output, *(("--overwrite",) if replaces else ()))
            process.join(rng.uniform(0.05, seconds[method]) if kills else 120)
            kills = max(0, kills - 1)
            process.kill()
            process.join()
            staging = output.parent / f".{output.name}.draft"
            if process.exitcode == 0:
                done = True
                outcome = "completed"
            elif output.exists() and content(output) == expected[method] and not (replaces and method == "wanda"):
                done = True
                outcome = "killed with the output in place"
            elif not staging.exists():
                outcome = "killed before anything was written"
            else:
                hits += 1
                outcome = f"killed with {entries(output)} entries"
                outcomes["killed after resuming"] += entries_before > 0
                assert entries(output) >= entries_before
                assert content(output) == previous if replaces else not output.exists()
            outcomes[outcome] += 1
        assert content(output) == expected[method]
        outcomes["outputs compared"] += 1
        shutil.rmtree(output)
        assert process.exitcode or not staging.exists()
        shutil.rmtree(staging, ignore_errors=True)
    print(f"\n{hits} kills hit work in progress:", dict(sorted(outcomes.items())))  # noqa: T201
