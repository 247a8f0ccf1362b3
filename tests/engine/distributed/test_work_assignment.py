"""Which rank prunes which matrices of a round, and which all ranks prune together."""

import pytest
import torch

from eggs_ptp.engine.distributed.process_group import SINGLE_PROCESS
from eggs_ptp.engine.distributed.torchrun import DistributedGroup
from eggs_ptp.engine.distributed.work_assignment import assign_work
from eggs_ptp.engine.planning.make_plan import make_plan
from eggs_ptp.engine.planning.plan import matrices_by_activation, refresh_rounds
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.recipe.recipe import Recipe, TargetRule

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 64}


@pytest.fixture
def rounds(tiny):
    """`rounds(2, method="eggs+")`: for each round of a block, the rank of each matrix."""

    def assigned(count, model_type="llama", changes=WIDE, refresh=True, **recipe):
        folder = tiny(model_type, **changes)
        skeleton = load_skeleton(folder)
        reader = CheckpointReader(folder, ties=skeleton.ties)
        plan = make_plan(skeleton, reader, Recipe(**recipe), device=torch.device("cpu"), dtype=torch.float32)
        groups = matrices_by_activation(plan.of_block(0))
        group = SINGLE_PROCESS if count == 1 else DistributedGroup(1, count, torch.device("cpu"), None)
        owned = [assign_work(matrices, group) for matrices in (refresh_rounds(groups) if refresh else [groups])]
        short = {matrix.name: matrix.path.partition(".")[2].removesuffix("_proj") for matrix in plan.of_block(0)}
        return [{short[name]: rank for name, rank in assigned.items()} for assigned in owned]

    return assigned


def test_one_process_prunes_everything(rounds):
    assert rounds(1) == [dict.fromkeys("qkv", 0), {"o": 0}, {"gate": 0, "up": 0}, {"down": 0}]


def test_matrices_that_would_keep_one_rank_busy_are_split(rounds):
    small = {"q": 0, "k": 1, "v": 1}  # and o: too small to be split
    assert rounds(2) == [small, {"o": 0}, {"gate": 0, "up": 1}, {}]
    assert rounds(4) == [{"q": 0, "k": 1, "v": 2}, {"o": 0}, {}, {}]


def test_of_several_turns_in_one_the_costliest_are_done_together_until_the_rest_is_even(rounds):
    assert rounds(2, refresh=False) == [{"q": 1, "k": 0, "v": 1, "o": 0, "gate": 1, "up": 1, "down": 0}]
    assert rounds(3, refresh=False, method="wanda+pcg") == [{"q": 1, "k": 2, "v": 2, "o": 0}]


@pytest.mark.parametrize("method", ["sparsegpt", "eggs", "wanda", "eggs++gptq", "obs+reselect"])
def test_matrices_are_assigned_where_some_solving_step_has_no_row_tiles(rounds, method):
    steps = {"score": "obs"} if method == "obs+reselect" else {}
    assigned_by_round = rounds(4, method="wanda+reselect" if steps else method, steps=steps)
    assert [len(assigned) for assigned in assigned_by_round] == [3, 1, 2, 1]


def test_consumers_of_an_activation_are_split_together_or_not_at_all(rounds):
    targets = (TargetRule(match="*.up_proj", method="sparsegpt"),)
    assert rounds(4, targets=targets)[2] == {"gate": 0, "up": 1}
    assert rounds(4, targets=(TargetRule(match="*.up_proj", method="wanda"),))[2] == {}


def test_experts_are_assigned(rounds):
    *_, ups, downs = rounds(2, "mixtral")
    assert [sorted(assigned.values()) for assigned in (ups, downs)] == [[0] * 4 + [1] * 4, [0, 0, 1, 1]]
