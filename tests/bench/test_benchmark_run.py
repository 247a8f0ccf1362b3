"""BenchmarkRun: its options are parsed, its results are kept."""

import json

import pytest
import torch

from eggs_ptp.bench.benchmark_run import BenchmarkRun, parse_batches, parse_patterns, parse_shapes
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError, RecipeError


def test_shapes_batches_and_patterns():
    assert parse_shapes("4096x4096, 11008X4096") == [(4096, 4096), (11008, 4096)]
    assert parse_batches("1, 2,16") == [1, 2, 16]
    assert parse_patterns("2:4,4:8") == [Pattern(2, 4), Pattern(4, 8)]


@pytest.mark.parametrize("text", ["", "4096", "4096x", "0x8", "8x8x8", "8x-8", "8x8,"])
def test_invalid_shapes_are_refused(text):
    with pytest.raises(RecipeError, match="is not a shape; expected rows x columns such as 4096x4096"):
        parse_shapes(text)


@pytest.mark.parametrize("text", ["", "0", "1,two", "-1"])
def test_invalid_batches_are_refused(text):
    with pytest.raises(RecipeError, match="is not a number of inputs; expected numbers such as 1,2,4,8,16"):
        parse_batches(text)


def test_unstructured_is_refused():
    with pytest.raises(PatternError, match=r"--patterns: sparsity 0\.5 is unstructured"):
        parse_patterns("2:4,0.5")


def test_the_listener_is_called_at_the_start_and_after_every_result_and_threads_are_restored():
    progress = []
    before = torch.get_num_threads()
    benchmark_run = BenchmarkRun("eggs bench", [1, 2], rounds=5, threads=before + 1)
    benchmark_run.listener = lambda run: progress.append((len(run.products), run.expected, torch.get_num_threads()))
    benchmark_run.measure_shapes([(16, 16), (32, 16)], [Pattern(2, 4)], [torch.float32])
    assert progress == [(done, 4, before + 1) for done in range(5)]
    assert torch.get_num_threads() == before
    assert [(product.rows, product.batch) for product in benchmark_run.products] == [(16, 1), (16, 2), (32, 1), (32, 2)]
    record = json.loads(json.dumps(benchmark_run.to_dict()))
    assert record["products"][0]["threads"] == before + 1
    assert f"{before + 1} thread(s)" in benchmark_run.machine
    assert record["generate"] is None


def test_remarks():
    benchmark_run = BenchmarkRun("eggs bench", [1], rounds=5)
    benchmark_run.measure_shapes([(16, 16)], [Pattern(2, 4)], [torch.float32])
    benchmark_run.hardware["cpus"] = 10_000
    assert benchmark_run.remarks() == []
    benchmark_run.hardware["cpus"] = 1
    benchmark_run.products[0].load_after[:] = [2.5, 2.0, 2.0]
    assert benchmark_run.remarks() == ["more was running than there are CPUs: measure again when the machine is idle"]
