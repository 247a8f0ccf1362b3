"""The implementations that the benchmarks compare give the same result."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from eggs_ptp.core.pattern import Pattern, parse_pattern

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8)], ids=str)
def test_sparsegpt_equals_both_literal_implementations(pattern):
    layer = benchmark("sparsegpt_speed").measure(64, 320, pattern, 1, "cpu")
    assert layer["rows_with_another_mask"]["ours, float64"] == 0
    assert layer["largest_difference_in_float64"] < 1e-10
    assert max(layer["rows_with_another_mask"].values()) <= 1  # a near tie in float32
    assert layer["seconds"]["columns"]["products"] < layer["seconds"]["columns"]["sweep"]
    for seconds in layer["seconds"].values():
        assert min(seconds.values()) >= 0
        assert seconds["total"] == pytest.approx(seconds["factorisation"] + seconds["products"] + seconds["sweep"])


@pytest.mark.parametrize("pattern", ["0.6", "2:4", "0.5"])
def test_dsnot_for_all_rows_equals_dsnot_row_by_row(pattern):
    speed = benchmark("dsnot_speed")
    row = speed.measure(speed.make_layer(48, 256), parse_pattern(pattern), 1)
    assert row["rows_with_another_mask"] == 0
    assert row["swaps_per_row"] > 1


def test_prune_speed_covers_every_step():
    from eggs_ptp.method.catalogue import find_method
    from eggs_ptp.method.step import SLOTS, names

    methods = benchmark("prune_speed").every_method()
    covered = {step.name for method in methods for step in find_method(method).bind().steps.values()}
    assert {step for slot in SLOTS for step in names(slot)} <= covered
