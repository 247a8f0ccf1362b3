"""The estimate of time: processor time, a range, and what a busy machine adds."""

import pytest
import torch

from eggs_ptp.engine.planning import time_estimate
from eggs_ptp.engine.planning.make_plan import make_plan
from eggs_ptp.engine.planning.time_estimate import busy_machine, time_range
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.recipe.read import read_recipe

CPU = torch.device("cpu")


@pytest.fixture
def planned(tiny, monkeypatch):
    monkeypatch.setattr(time_estimate, "_operations_per_second", lambda device: 1e9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def plan(**settings):
        reader = CheckpointReader(tiny())
        recipe = read_recipe(None, (), calibration="demo", nsamples=8, **settings)
        return make_plan(load_skeleton(tiny()), reader, recipe, device=CPU, dtype=torch.float32)

    return plan


def test_threads_share_the_processor_time(planned):
    plan = planned(method="wanda")
    assert plan.processor_seconds == pytest.approx(4 * plan.seconds)
    assert plan.to_dict()["processor_seconds"] == plan.processor_seconds


def test_a_method_that_solves_takes_longer_than_its_passes(planned):
    wanda, sparsegpt, connected = (planned(method=name).seconds for name in ("wanda", "sparsegpt", "eggs+"))
    # Two passes over 8 windows of 128 tokens through 2 blocks of 9216 weights.
    assert wanda == pytest.approx(2 * 2 * 1.3 * 8 * 128 * 2 * 9216 / 1e9 / 4)
    assert wanda < sparsegpt < connected
    assert planned(method="magnitude").seconds == 0


def test_the_range_contains_the_estimate_and_grows_with_the_load():
    low, high = time_range(100.0)
    assert low < 100 < high
    assert time_range(100.0, slowdown=3.0) == (3 * low, 3 * high)


@pytest.mark.parametrize(("load", "slowdown"), [(0.2, None), (3.0, 1.75), (10.0, 3.5)])
def test_a_busy_machine_is_slower(monkeypatch, load, slowdown):
    monkeypatch.setattr(time_estimate.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(time_estimate.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    busy = busy_machine()
    assert (busy and busy.slowdown) == slowdown


def test_the_speed_is_measured_in_processor_time(monkeypatch):
    times = iter([0.0, 2.0, 2.0, 3.0, 3.0, 7.0])
    monkeypatch.setattr(time_estimate.time, "process_time", lambda: next(times))
    assert time_estimate._operations_per_second.__wrapped__(CPU) == 2 * 1024**3 / 1.0
