"""How much memory a run needs, and how it fits into a budget."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from eggs_ptp.engine.planning.make_plan import make_plan
from eggs_ptp.engine.planning.memory_budget import fit_budget, memory_needs
from eggs_ptp.engine.planning.plan import BATCH_TOKENS
from eggs_ptp.engine.resources import anonymous_memory
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import RecipeError
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.recipe.recipe import Recipe

MIB = 1 << 20


@pytest.fixture(scope="module")
def planned(tiny):
    skeleton = load_skeleton(tiny("llama"))

    def plan(method="eggs+", seqlen=16):
        recipe = Recipe(method=method, calibration={"text": "demo", "nsamples": 64, "seqlen": seqlen})
        return make_plan(
            skeleton, CheckpointReader(skeleton.folder), recipe, device=torch.device("cpu"), dtype=torch.float32
        )

    return skeleton, plan


def test_without_a_limit_nothing_is_in_files(planned):
    skeleton, plan = planned
    assert fit_budget(plan(), skeleton, None).allowance is None


def test_activations_get_what_the_rest_leaves(planned):
    skeleton, plan = planned
    budget = fit_budget(plan(), skeleton, anonymous_memory() + 128 * MIB)
    assert budget.batch_tokens == BATCH_TOKENS
    assert 0 < budget.allowance < 128 * MIB
    assert (
        abs(budget.allowance + memory_needs(plan(), skeleton).work - 128 * MIB) < 8 * MIB
    )  # this process moves a little


def test_batches_are_made_smaller_before_a_run_is_refused(planned):
    skeleton, plan = planned
    less, more = (memory_needs(plan("ria"), skeleton, tokens).work for tokens in (256, BATCH_TOKENS))
    budget = fit_budget(plan("ria"), skeleton, anonymous_memory() + (less + more) // 2)
    assert budget.batch_tokens < BATCH_TOKENS
    with pytest.raises(RecipeError, match=r"--memory: expected at least .* MiB .*, got 1 MiB; raise it"):
        fit_budget(plan(), skeleton, MIB)


def test_gram_matrices_and_the_dense_model_cost(planned):
    skeleton, plan = planned
    least, most = (memory_needs(plan(method), skeleton) for method in ("ria", "eggs+"))
    assert most.work > least.work
    assert (
        most.activations == 8 * least.activations
    )  # its own stream, the dense stream, four targets, two cached inputs
    assert memory_needs(plan("magnitude"), skeleton).activations == 0


def test_the_search_for_an_order_is_counted(planned):
    skeleton, plan = planned
    fold = plan("ria_cp")
    rows = sum(matrix.rows for matrix in fold.folding("model"))
    assert memory_needs(fold, skeleton, 0).work >= 7 * 4 * rows * skeleton.hidden_size
    mask = replace(fold, permutation="mask", seqlen=0)
    assert memory_needs(replace(fold, seqlen=0), skeleton, 0).work > memory_needs(mask, skeleton, 0).work


def test_a_tune_step_costs_a_pass_back_and_the_head(planned):
    """Of 4096 tokens at most, or of its batch of windows, whatever a batch without a way back has."""
    skeleton, plan = planned
    short, long = (memory_needs(plan("eggs-max", seqlen=seqlen), skeleton, 256).work for seqlen in (16, 128))
    assert long - short > 400 * (4 * 64 + 8 * 32) * 4  # tokens more in a batch of four windows
    whole = plan("eggs-max", seqlen=128)
    unaware = replace(whole, blocks=whole.blocks + 1)  # no block is the last
    more = memory_needs(whole, skeleton, 256).work - memory_needs(unaware, skeleton, 256).work
    assert more == 258 * (4 * 32 + int(5.5 * 4 * 512))


def test_reading_a_text_is_counted(planned, tmp_path):
    skeleton, plan = planned
    text = tmp_path / "text.txt"
    text.write_text("word " * 10**7)
    read = replace(plan("wanda"), calibration=str(text))
    assert memory_needs(read, skeleton).total > 390 * MIB
    assert memory_needs(replace(read, calibration="windows.npy"), skeleton).total < 100 * MIB
    with pytest.raises(RecipeError, match="or a shorter text"):
        fit_budget(read, skeleton, anonymous_memory() + 300 * MIB)
    assert fit_budget(read, skeleton, anonymous_memory() + 500 * MIB).allowance > 400 * MIB  # it is gone by then


RUN = """
import sys
from eggs_ptp import api
api.prune("demo", sys.argv[1], method=sys.argv[2], memory=int(sys.argv[3]) or None, nsamples=32, seqlen=128)
"""


def weights(output, method, memory, **environment):
    command = [sys.executable, "-c", RUN, str(output), method, str(memory)]
    ran = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True
    )
    return (output / "model.safetensors").read_bytes() if ran.returncode == 0 else ran.stderr


def test_a_run_with_activations_in_files_gives_the_same_bits_within_its_limit(tmp_path):
    free = weights(tmp_path / "free", "eggs+", 0)
    assert isinstance(free, bytes), free
    need = weights(tmp_path / "none", "eggs+", MIB)
    least = int(need.partition("expected at least ")[2].partition(" MiB")[0])
    tight = weights(tmp_path / "tight", "eggs+", (least + 60) * MIB)
    assert tight == free
