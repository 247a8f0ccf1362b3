"""Products of one shape: who takes part, that they are right, what is recorded."""

import json
from dataclasses import replace

import pytest
import torch

from eggs_ptp.bench import hardware, shape
from eggs_ptp.bench.contest import Timing
from eggs_ptp.bench.dense import why_not_prepacked
from eggs_ptp.bench.plot import plot
from eggs_ptp.bench.shape import Measured, measure_shape
from eggs_ptp.core.mask import violations
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import BackendError, NumericsError, PatternError
from eggs_ptp.sparse.backends import Backend, using

TWO, FOUR, ONE = Pattern(2, 4), Pattern(4, 8), Pattern(1, 4)
MEASURED = Measured(
    64,
    32,
    1,
    1,
    2,
    {"2:4 fp32": "cpu", "2:4 bf16": "cpu"},
    {
        "dense fp32 stock": Timing((4.0,) * 5),
        "dense fp32 prepacked": Timing((3.0,) * 5),
        "dense bf16 stock": Timing((2.0,) * 5),
        "dense bf16 prepacked": Timing((1.0, 2.0, 3.0, 4.0, 5.0)),
        "2:4 fp32": Timing((1.5,) * 5),
        "2:4 bf16": Timing((1.0,) * 5),
    },
    [0.5, 0.0, 0.0],
    [1.5, 0.0, 0.0],
)


def measured(**changes):
    settings = {"patterns": [TWO], "dtypes": [torch.float32], "rounds": 5, **changes}
    return list(measure_shape(64, 48, [1, 3], **settings))


def test_everyone_takes_part_and_all_samples_are_kept():
    one, three = measured(patterns=[TWO, FOUR], dtypes=[torch.float32, torch.bfloat16])
    assert (one.batch, three.batch) == (1, 3)
    wanted = {f"{pattern} {short}" for pattern in ("2:4", "4:8") for short in ("fp32", "bf16")}
    assert set(one.backends) == wanted
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        wanted.add(f"dense {short} stock")
        if why_not_prepacked(dtype) is None:
            wanted.add(f"dense {short} prepacked")
    assert set(one.timings) == wanted
    record = json.loads(json.dumps(three.to_dict()))
    assert all(len(samples) == 5 for samples in record["microseconds"].values())
    assert set(record["ratios"]) == set(three.ratios())
    assert all(value > 0 for timing in one.timings.values() for value in timing.seconds)


def test_the_ratio_is_over_the_faster_dense_product_of_the_same_type():
    assert MEASURED.best_dense("fp32") == "dense fp32 prepacked"
    assert MEASURED.best_dense("bf16") == "dense bf16 stock"
    assert MEASURED.ratios() == {
        "2:4 fp32 over dense fp32 prepacked": (2.0, True),
        "2:4 bf16 over dense bf16 stock": (2.0, True),
    }
    spread = replace(MEASURED, timings={**MEASURED.timings, "2:4 bf16": Timing((1.0, 1.0, 2.0, 3.0, 3.0))})
    assert spread.to_dict()["ratios"]["2:4 bf16 over dense bf16 stock"] == {"value": 1.0, "trusted": False}


def test_the_backend_is_the_one_that_is_chosen():
    assert measured(patterns=[ONE])[0].backends == {"1:4 fp32": "reference"}
    with using("reference"):
        assert measured()[0].backends == {"2:4 fp32": "reference"}


def test_the_matrices_have_the_pattern():
    weight = shape._pruned(16, 32, FOUR, torch.Generator().manual_seed(0))
    assert not violations(weight != 0, FOUR)
    assert (weight != 0).sum() == 16 * 32 // 2


def test_a_wrong_product_is_not_timed(monkeypatch):
    wrong = Backend("wrong", "", lambda *product: None, lambda packed: packed, lambda x, packed: x @ x.new_ones(48, 64))
    monkeypatch.setattr(shape, "choose", lambda *product: wrong)
    with pytest.raises(NumericsError, match="2:4 fp32, 64x48, batch 1: relative error"):
        measured()


def test_refusals(monkeypatch):
    with pytest.raises(PatternError, match="64x50: 50 columns are no multiple of 4, as 2:4 needs"):
        list(measure_shape(64, 50, [1], patterns=[TWO], dtypes=[torch.float32]))
    with pytest.raises(BackendError, match=r"take about \d+\.\d GB and .* are free"):
        list(measure_shape(1 << 22, 1 << 20, [1], patterns=[TWO], dtypes=[torch.float32]))


def test_there_are_so_many_copies_that_they_leave_the_cache(monkeypatch):
    monkeypatch.setattr(shape, "largest_cache", lambda: 1 << 20)
    turn = 64 * 64 * 4 * 5 // 2  # stock, prepacked and half for packed
    copies = shape._copies(64, 64, [TWO], [torch.float32])
    assert (copies - 1) * turn >= 2 << 20 > (copies - 2) * turn
    assert shape._copies(1024, 1024, [TWO], [torch.float32]) == 2
    assert shape._copies(4, 8, [TWO], [torch.float32]) == 64


def test_the_machine_is_described():
    found = hardware.hardware()
    assert found["processor"]
    assert found["cpus"] >= 1
    assert found["torch"] == torch.__version__
    assert hardware.largest_cache() > 0
    json.dumps(found)


def test_the_plot_has_a_line_for_each_and_hollow_points_where_it_is_not_trusted():
    from xml.etree import ElementTree

    shaky = replace(MEASURED, batch=4, timings={**MEASURED.timings, "2:4 bf16": Timing((1.0, 1.0, 2.0, 3.0, 3.0))})
    drawn = plot([MEASURED, shaky], "a <machine>")
    tree = ElementTree.fromstring(drawn)  # noqa: S314
    texts = [each.text for each in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <machine>", "64x32 2:4 fp32", "64x32 2:4 bf16", "1", "4", "1.0x", "2.0x"} <= set(texts)
    fills = [each.get("fill") for each in tree.iter("{http://www.w3.org/2000/svg}circle")]
    assert fills.count("white") == 1
    assert len(fills) == 6  # two lines of two points, and the legend


def test_a_machine_that_does_not_tell_of_its_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_CPU", tmp_path)
    (tmp_path / "index0").mkdir()
    assert hardware.largest_cache() == 64 << 20
    (tmp_path / "index0" / "level").write_text("2\n")
    assert hardware.hardware()["caches"] == []
    (tmp_path / "index0" / "size").write_text("2048K\n")
    assert hardware.hardware()["caches"] == ["L2 2048K"]
    assert hardware.largest_cache() == 2 << 20
