"""What a run needs, and how it fits into a given memory."""

import os
import subprocess
import sys

import pytest
import torch

from eggs_ptp.engine.budget import BATCH_TOKENS, budget_of, needs_of
from eggs_ptp.engine.plan import plan_run
from eggs_ptp.engine.shards import Shards
from eggs_ptp.engine.usage import anonymous_memory
from eggs_ptp.errors import RecipeError
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.recipe.recipe import Recipe

MIB = 1 << 20


@pytest.fixture(scope="module")
def planned(tiny):
    skeleton = load_skeleton(tiny("llama"))

    def plan(method="eggs+", seqlen=16):
        recipe = Recipe(method=method, calibration={"text": "demo", "nsamples": 64, "seqlen": seqlen})
        return plan_run(skeleton, Shards(skeleton.folder), recipe, device=torch.device("cpu"), dtype=torch.float32)

    return skeleton, plan


def test_without_a_limit_nothing_is_in_files(planned):
    skeleton, plan = planned
    assert budget_of(plan(), skeleton, None).allowance is None


def test_activations_get_what_the_rest_leaves(planned):
    skeleton, plan = planned
    found = budget_of(plan(), skeleton, anonymous_memory() + 64 * MIB)
    assert found.batch_tokens == BATCH_TOKENS
    assert 0 < found.allowance < 64 * MIB
    assert abs(found.allowance + needs_of(plan(), skeleton).work - 64 * MIB) < 8 * MIB  # this process moves a little


def test_batches_are_made_smaller_before_a_run_is_refused(planned):
    skeleton, plan = planned
    work = needs_of(plan("ria"), skeleton, 256).work
    found = budget_of(plan("ria"), skeleton, anonymous_memory() + 2 * work)
    assert found.batch_tokens < BATCH_TOKENS
    with pytest.raises(RecipeError, match=r"--memory: expected at least .* MiB .*, came 1 MiB; raise it"):
        budget_of(plan(), skeleton, MIB)


def test_gram_matrices_and_the_dense_model_cost(planned):
    skeleton, plan = planned
    least, most = (needs_of(plan(method), skeleton) for method in ("ria", "eggs+"))
    assert most.work > least.work
    assert most.activations == 8 * least.activations  # its own stream, four targets, two settled parts
    assert needs_of(plan("magnitude"), skeleton).activations == 0


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
