"""Windows shared out over ranks, and what is added up leaf by leaf."""

import pytest
import torch

from eggs_ptp.core.stats import Moments
from eggs_ptp.engine.cut import LEAVES, Cut
from eggs_ptp.engine.observe import Observation, Want
from eggs_ptp.engine.place import find_device
from eggs_ptp.engine.ranks import ALONE, Ranks
from eggs_ptp.engine.team import Team
from eggs_ptp.errors import CalibrationError


def cuts(windows, count, at_once=3):
    """What each rank of so many has."""
    return [Cut.of(windows, at_once, Team(rank, count, torch.device("cpu"), None)) for rank in range(count)]


def pieces(cut):
    """The batches of each leaf, by their places among the windows of all ranks."""
    return [[(w.start + cut.mine.start, w.stop + cut.mine.start) for w in leaf] for leaf in cut]


@pytest.mark.parametrize("windows", [4, 5, 7, 16, 129])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_up_to_four_ranks_run_the_very_batches_of_one(windows, count):
    alone = Cut.of(windows, 3)
    assert [leaf for cut in cuts(windows, count) for leaf in pieces(cut)] == pieces(alone)
    assert len(pieces(alone)) == LEAVES
    assert [place for leaf in pieces(alone) for batch in leaf for place in range(*batch)] == list(range(windows))
    assert max(alone.sizes) <= 3


def test_more_ranks_have_a_leaf_each():
    shared = cuts(20, 8)
    assert [len(cut.leaves) for cut in shared] == [1] * 8
    assert sum(sum(cut.sizes) for cut in shared) == 20
    assert {sum(cut.sizes) for cut in shared} == {2, 3}


def test_one_process_may_have_fewer_windows_than_leaves():
    assert pieces(Cut.of(2, 3)) == [[(0, 1)], [(1, 2)]]
    with pytest.raises(CalibrationError, match="3 calibration windows cannot be shared out over 2 processes"):
        cuts(3, 2)


@pytest.mark.parametrize("stride", [1, 2, 5, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_so_manieth_window_is_counted_over_all_ranks(stride, count):
    windows, found = torch.arange(16), []
    for cut in cuts(16, count):
        here, fewer = cut.every(stride)
        mine = windows[cut.mine][here]
        found += [mine[batch].tolist() for leaf in fewer for batch in leaf]
        assert sum(fewer.sizes) == len(mine)
    places, alone = Cut.of(16, 3).every(stride)
    assert found == [windows[places][batch].tolist() for leaf in alone for batch in leaf]
    assert [window for batch in found for window in batch] == list(range(0, 16, stride))


def test_pieces_are_all_that_is_collected_of_a_sum():
    moments = Moments(600, frozenset({"gram", "cross", "input_norm"}), dense_width=300)
    for piece in moments.pieces():
        piece += 1
    assert torch.equal(moments.sums["gram"].tril(), torch.ones(600, 600).tril())
    assert bool((moments.sums["cross"] == 1).all())
    assert bool((moments.sums["square"] == 1).all())
    assert sum(piece.numel() for piece in moments.pieces()) < 0.8 * 600 * 600 + 300 * 600 + 600


def test_a_leaf_is_kept_apart_where_others_come_before_it():
    want = Want("here", 4, frozenset({"input_norm"}))
    seen = {leads: Observation(want, 12, torch.device("cpu")) for leads in (True, False)}
    x = torch.arange(48, dtype=torch.float32).view(3, 4, 4)
    for leads, observation in seen.items():
        for leaf in x:
            observation.add(leaf[None])
            observation.close(leads=leads)
        observation.close(leads=leads)  # a leaf that nothing came from
    assert (seen[True].moments.tokens, len(seen[True].leaves)) == (12, 0)
    assert (seen[False].moments.tokens, len(seen[False].leaves)) == (4, 2)
    apart = seen[False].moments.sums["square"] + seen[False].leaves[0].sums["square"]
    assert torch.equal(apart + seen[False].leaves[1].sums["square"], seen[True].moments.sums["square"])


def test_the_costliest_work_is_dealt_first_and_to_who_has_least():
    team = Team(1, 2, torch.device("cpu"), None)
    assert team.deal({"q": 1, "k": 1, "down": 5, "up": 3, "gate": 3}) == {"down": 0, "gate": 1, "up": 1, "k": 0, "q": 0}
    assert ALONE.deal({"q": 1, "k": 1}) == {"q": 0, "k": 0}


def test_each_rank_has_a_gpu_of_its_own():
    assert Team(1, 2, torch.device("cuda", 1), None).device("auto") == "cuda:1"
    assert Ranks().device("auto") == "auto"
    assert find_device(Team(1, 2, torch.device("cpu"), None).device("auto")) == torch.device("cpu")
