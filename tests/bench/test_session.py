"""Sessions: what is asked for is read, what is found is kept."""

import json

import pytest
import torch

from eggs_ptp.bench.session import Session, parse_batches, parse_patterns, parse_shapes
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError, RecipeError


def test_shapes_batches_and_patterns():
    assert parse_shapes("4096x4096, 11008X4096") == [(4096, 4096), (11008, 4096)]
    assert parse_batches("1, 2,16") == [1, 2, 16]
    assert parse_patterns("2:4,4:8") == [Pattern(2, 4), Pattern(4, 8)]


@pytest.mark.parametrize("text", ["", "4096", "4096x", "0x8", "8x8x8", "8x-8", "8x8,"])
def test_no_shapes(text):
    with pytest.raises(RecipeError, match="is no shape; expected rows x columns such as 4096x4096"):
        parse_shapes(text)


@pytest.mark.parametrize("text", ["", "0", "1,two", "-1"])
def test_no_batches(text):
    with pytest.raises(RecipeError, match="is no number of inputs; expected such as 1,2,4,8,16"):
        parse_batches(text)


def test_unstructured_is_refused():
    with pytest.raises(PatternError, match=r"--patterns: sparsity 0\.5 is unstructured"):
        parse_patterns("2:4,0.5")


def test_the_listener_hears_of_the_beginning_and_of_every_result_and_threads_come_back():
    heard = []
    before = torch.get_num_threads()
    session = Session("eggs bench", [1, 2], rounds=5, threads=before + 1)
    session.listener = lambda now: heard.append((len(now.products), now.expected, torch.get_num_threads()))
    session.measure_shapes([(16, 16), (32, 16)], [Pattern(2, 4)], [torch.float32])
    assert heard == [(done, 4, before + 1) for done in range(5)]
    assert torch.get_num_threads() == before
    assert [(each.rows, each.batch) for each in session.products] == [(16, 1), (16, 2), (32, 1), (32, 2)]
    record = json.loads(json.dumps(session.to_dict()))
    assert record["products"][0]["threads"] == before + 1
    assert f"{before + 1} thread(s)" in session.machine
    assert record["generate"] is None


def test_remarks():
    session = Session("eggs bench", [1], rounds=5)
    session.measure_shapes([(16, 16)], [Pattern(2, 4)], [torch.float32])
    session.hardware["cpus"] = 10_000
    assert session.remarks() == []
    session.hardware["cpus"] = 1
    session.products[0].load_after[:] = [2.5, 2.0, 2.0]
    assert session.remarks() == ["more was running than there are CPUs: measure again when the machine is idle"]
