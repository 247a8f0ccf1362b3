"""Which rank does which matrices of a turn, and which all ranks do together."""

import pytest
import torch

from eggs_ptp.engine.plan import in_turn, matrices_by_activation, plan_run
from eggs_ptp.engine.ranks import ALONE
from eggs_ptp.engine.shards import Shards
from eggs_ptp.engine.team import Team
from eggs_ptp.engine.turn import dealt
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.recipe.recipe import Recipe, Target

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 64}


@pytest.fixture
def turns(tiny):
    """`turns(2, method="eggs+")`: of each turn of a block, who does which matrices."""

    def turn(count, model_type="llama", changes=WIDE, refresh=True, **recipe):
        folder = tiny(model_type, **changes)
        skeleton = load_skeleton(folder)
        shards = Shards(folder, ties=skeleton.ties)
        plan = plan_run(skeleton, shards, Recipe(**recipe), device=torch.device("cpu"), dtype=torch.float32)
        groups = matrices_by_activation(plan.of_block(0))
        ranks = ALONE if count == 1 else Team(1, count, torch.device("cpu"), None)
        owned = [dealt(together, ranks) for together in (in_turn(groups) if refresh else [groups])]
        short = {matrix.name: matrix.path.partition(".")[2].removesuffix("_proj") for matrix in plan.of_block(0)}
        return [{short[name]: rank for name, rank in turn.items()} for turn in owned]

    return turn


def test_one_process_does_all(turns):
    assert turns(1) == [dict.fromkeys("qkv", 0), {"o": 0}, {"gate": 0, "up": 0}, {"down": 0}]


def test_all_ranks_do_what_would_keep_one_of_them_busy(turns):
    small = {"q": 0, "k": 1, "v": 1}  # and o: not large enough to be cut
    assert turns(2) == [small, {"o": 0}, {"gate": 0, "up": 1}, {}]
    assert turns(4) == [{"q": 0, "k": 1, "v": 2}, {"o": 0}, {}, {}]


def test_of_several_turns_in_one_the_costliest_are_done_together_until_the_rest_is_even(turns):
    assert turns(2, refresh=False) == [{"q": 1, "k": 0, "v": 1, "o": 0, "gate": 1, "up": 1, "down": 0}]
    assert turns(3, refresh=False, method="wanda+pcg") == [{"q": 1, "k": 2, "v": 2, "o": 0}]


@pytest.mark.parametrize("method", ["sparsegpt", "eggs", "wanda", "eggs++gptq", "obs+reselect"])
def test_matrices_are_dealt_where_not_all_that_solves_works_by_slabs(turns, method):
    steps = {"score": "obs"} if method == "obs+reselect" else {}
    found = turns(4, method="wanda+reselect" if steps else method, steps=steps)
    assert [len(turn) for turn in found] == [3, 1, 2, 1]


def test_readers_are_done_together_or_not_at_all(turns):
    targets = (Target(match="*.up_proj", method="sparsegpt"),)
    assert turns(4, targets=targets)[2] == {"gate": 0, "up": 1}
    assert turns(4, targets=(Target(match="*.up_proj", method="wanda"),))[2] == {}


def test_experts_are_dealt(turns):
    *_, ups, downs = turns(2, "mixtral")
    assert [sorted(turn.values()) for turn in (ups, downs)] == [[0] * 4 + [1] * 4, [0, 0, 1, 1]]
