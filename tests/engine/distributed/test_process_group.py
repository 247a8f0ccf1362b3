"""Calibration windows divided over processes, and sums added up chunk by chunk."""

import pytest
import torch

from eggs_ptp.core.stats import Moments
from eggs_ptp.engine.distributed.process_group import SINGLE_PROCESS
from eggs_ptp.engine.distributed.torchrun import DistributedGroup
from eggs_ptp.engine.distributed.window_shard import REDUCTION_CHUNKS, WindowShard
from eggs_ptp.engine.planning.device import find_device
from eggs_ptp.engine.statistics.activation_statistics import ActivationStatistics
from eggs_ptp.engine.statistics.requests import StatisticRequest
from eggs_ptp.errors import CalibrationError


def shards_of(windows, count, batch_windows=3):
    """The shard of each of `count` ranks."""
    return [
        WindowShard.of(windows, batch_windows, DistributedGroup(rank, count, torch.device("cpu"), None))
        for rank in range(count)
    ]


def batches(shard):
    """The batches of each chunk, as window indices over all ranks."""
    return [[(w.start + shard.local.start, w.stop + shard.local.start) for w in chunk] for chunk in shard]


@pytest.mark.parametrize("windows", [4, 5, 7, 16, 129])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_up_to_four_ranks_run_the_same_batches_as_one(windows, count):
    alone = WindowShard.of(windows, 3)
    assert [chunk for shard in shards_of(windows, count) for chunk in batches(shard)] == batches(alone)
    assert len(batches(alone)) == REDUCTION_CHUNKS
    assert [place for chunk in batches(alone) for batch in chunk for place in range(*batch)] == list(range(windows))
    assert max(alone.batch_sizes) <= 3


def test_more_ranks_have_a_chunk_each():
    shared = shards_of(20, 8)
    assert [len(shard.chunks) for shard in shared] == [1] * 8
    assert sum(sum(shard.batch_sizes) for shard in shared) == 20
    assert {sum(shard.batch_sizes) for shard in shared} == {2, 3}


def test_one_process_may_have_fewer_windows_than_chunks():
    assert batches(WindowShard.of(2, 3)) == [[(0, 1)], [(1, 2)]]
    with pytest.raises(CalibrationError, match="3 calibration windows cannot be divided over 2 processes"):
        shards_of(3, 2)


@pytest.mark.parametrize("stride", [1, 2, 5, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_strides_are_counted_over_all_ranks(stride, count):
    windows, local_batches = torch.arange(16), []
    for shard in shards_of(16, count):
        chosen, fewer = shard.strided(stride)
        local = windows[shard.local][chosen]
        local_batches += [local[batch].tolist() for chunk in fewer for batch in chunk]
        assert sum(fewer.batch_sizes) == len(local)
    indices, alone = WindowShard.of(16, 3).strided(stride)
    assert local_batches == [windows[indices][batch].tolist() for chunk in alone for batch in chunk]
    assert [window for batch in local_batches for window in batch] == list(range(0, 16, stride))


def test_pieces_are_all_that_is_collected_of_a_sum():
    moments = Moments(600, frozenset({"gram", "cross", "input_norm"}), dense_width=300)
    for piece in moments.pieces():
        piece += 1
    assert torch.equal(moments.sums["gram"].tril(), torch.ones(600, 600).tril())
    assert bool((moments.sums["cross"] == 1).all())
    assert bool((moments.sums["square"] == 1).all())
    assert sum(piece.numel() for piece in moments.pieces()) < 0.8 * 600 * 600 + 300 * 600 + 600


def test_a_chunk_is_kept_until_those_of_earlier_ranks_are_added():
    request = StatisticRequest("here", 4, frozenset({"input_norm"}))
    statistics = {
        is_main_process: ActivationStatistics(request, 12, torch.device("cpu")) for is_main_process in (True, False)
    }
    x = torch.arange(48, dtype=torch.float32).view(3, 4, 4)
    for is_main_process, activation in statistics.items():
        for chunk in x:
            activation.add(chunk[None])
            activation.end_chunk(is_main_process=is_main_process)
        activation.end_chunk(is_main_process=is_main_process)  # an empty chunk
    assert (statistics[True].moments.tokens, len(statistics[True]._pending)) == (12, 0)
    assert (statistics[False].moments.tokens, len(statistics[False]._pending)) == (4, 2)
    apart = statistics[False].moments.sums["square"] + statistics[False]._pending[0].sums["square"]
    assert torch.equal(apart + statistics[False]._pending[1].sums["square"], statistics[True].moments.sums["square"])


def test_the_costliest_work_is_assigned_first_and_to_the_rank_with_the_least():
    group = DistributedGroup(1, 2, torch.device("cpu"), None)
    assert group.assign({"q": 1, "k": 1, "down": 5, "up": 3, "gate": 3}) == {
        "down": 0,
        "gate": 1,
        "up": 1,
        "k": 0,
        "q": 0,
    }
    assert SINGLE_PROCESS.assign({"q": 1, "k": 1}) == {"q": 0, "k": 0}


def test_each_rank_has_a_gpu_of_its_own():
    assert DistributedGroup(1, 2, torch.device("cuda", 1), None).device("auto") == "cuda:1"
    assert SINGLE_PROCESS.device("auto") == "auto"
    assert find_device(DistributedGroup(1, 2, torch.device("cpu"), None).device("auto")) == torch.device("cpu")
