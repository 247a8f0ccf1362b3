"""Runs that are killed anywhere, and go on to the very output that they would have had."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter

import pytest
from launched import content

METHODS = {  # hidden states of the pruned model; an order found first; those of the dense model too; tuned blocks
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
# Ctrl-C is heard even where the tests run in the background, as a shell has its jobs there ignore it.
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from eggs_ptp.cli.main import main
sys.exit(main({!r}))
"""
SEED = 7


@pytest.fixture(scope="module")
def start(tiny, text_file):
    """`start("eggs", folder)`: a process that prunes into the folder, and has imported everything beforehand."""
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
    """How many entries the journal of an unfinished run has."""
    return len(list(output.parent.glob(f".{output.name}.draft/entry-?????")))


@pytest.mark.parametrize("method", ["wanda", "eggs", "eggs+"])
def test_a_killed_run_goes_on_to_the_same_output(start, tmp_path, method):
    finish(start(method, tmp_path / "whole", blocks=4))
    output, draw = tmp_path / "out", random.Random(SEED + len(method))  # noqa: S311
    reached, process = draw.randint(1, 3), start(method, output, blocks=4)
    while entries(output) < reached and process.is_alive():
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))
    process.kill()
    finish(process, -9)
    assert not output.exists()
    assert entries(output) >= reached
    finish(start(method, output, blocks=4))
    assert content(output) == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_ctrl_c_ends_at_once_and_keeps_what_is_finished(start, tmp_path):
    finish(start("wanda", tmp_path / "whole"))
    output = tmp_path / "out"
    process = start("wanda", output)
    while not entries(output) and process.is_alive():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    finish(process, 130)
    assert entries(output)
    assert not output.exists()
    finish(start("wanda", output))
    assert content(output) == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills(start, tmp_path):
    """Until 50 kills have hit work in progress; a run is killed up to four times before it may end."""
    draw, hits, seen, rounds = random.Random(SEED), 0, Counter(), 0  # noqa: S311
    whole, seconds = {}, {}
    for method in METHODS:
        for _ in range(2):  # the first one waits for the server
            began, folder = time.perf_counter(), tmp_path / f"whole-{method}"
            finish(start(method, folder, *(("--overwrite",) if folder.exists() else ())))
            seconds[method] = time.perf_counter() - began
        whole[method] = content(folder)
    previous = content(tmp_path / "whole-wanda")
    while hits < 50:
        method, replaces, output = list(METHODS)[rounds % 4], rounds % 3 == 2, tmp_path / f"out-{rounds}"
        rounds += 1
        if replaces:
            shutil.copytree(tmp_path / "whole-wanda", output)
        done, kills = False, draw.randint(1, 4)
        while not done:
            before, process = entries(output), start(method, output, *(("--overwrite",) if replaces else ()))
            process.join(draw.uniform(0.05, seconds[method]) if kills else 120)
            kills = max(0, kills - 1)
            process.kill()
            process.join()
            draft = output.parent / f".{output.name}.draft"
            if process.exitcode == 0:
                done, what = True, "ran to its end"
            elif output.exists() and content(output) == whole[method] and not (replaces and method == "wanda"):
                done, what = True, "killed with the output in place"
            elif not draft.exists():
                what = "killed before anything was begun"
            else:
                hits += 1
                what = f"killed with {entries(output)} entries"
                seen["resumed ones among them"] += before > 0
                assert entries(output) >= before
                assert content(output) == previous if replaces else not output.exists()
            seen[what] += 1
        assert content(output) == whole[method]
        seen["outputs compared"] += 1
        shutil.rmtree(output)
        assert process.exitcode or not draft.exists()
        shutil.rmtree(draft, ignore_errors=True)
    print(f"\n{hits} kills hit work in progress:", dict(sorted(seen.items())))  # noqa: T201
