"""Products of one shape: which candidates are measured, that they are correct, what is recorded."""

import json
from dataclasses import replace

import pytest
import torch

from eggs_ptp.bench import hardware, product
from eggs_ptp.bench.dense import prepack_unsupported_reason
from eggs_ptp.bench.plot import plot
from eggs_ptp.bench.product import ProductMeasurement, copies_beyond_cache, measure_shape, random_pruned
from eggs_ptp.bench.timing import Timing
from eggs_ptp.core.mask import count_violations
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import BackendError, NumericsError, PatternError
from eggs_ptp.sparse.backends import Backend, using

TWO, FOUR, ONE = Pattern(2, 4), Pattern(4, 8), Pattern(1, 4)
MEASURED = ProductMeasurement(
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


def test_every_candidate_is_measured_and_all_samples_are_kept():
    batch_1, batch_3 = measured(patterns=[TWO, FOUR], dtypes=[torch.float32, torch.bfloat16])
    assert (batch_1.batch, batch_3.batch) == (1, 3)
    expected = {f"{pattern} {name}" for pattern in ("2:4", "4:8") for name in ("fp32", "bf16")}
    assert set(batch_1.backends) == expected
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        expected.add(f"dense {name} stock")
        if prepack_unsupported_reason(dtype) is None:
            expected.add(f"dense {name} prepacked")
    assert set(batch_1.timings) == expected
    record = json.loads(json.dumps(batch_3.to_dict()))
    assert all(len(samples) == 5 for samples in record["microseconds"].values())
    assert set(record["ratios"]) == set(batch_3.ratios())
    assert all(value > 0 for timing in batch_1.timings.values() for value in timing.seconds)


def test_the_ratio_is_over_the_faster_dense_product_of_the_same_type():
    assert MEASURED.best_dense("fp32") == "dense fp32 prepacked"
    assert MEASURED.best_dense("bf16") == "dense bf16 stock"
    assert MEASURED.ratios() == {
        "2:4 fp32 over dense fp32 prepacked": (2.0, True),
        "2:4 bf16 over dense bf16 stock": (2.0, True),
    }
    unsteady = replace(MEASURED, timings={**MEASURED.timings, "2:4 bf16": Timing((1.0, 1.0, 2.0, 3.0, 3.0))})
    assert unsteady.to_dict()["ratios"]["2:4 bf16 over dense bf16 stock"] == {"value": 1.0, "trusted": False}


def test_the_backend_is_the_one_that_is_chosen():
    assert measured(patterns=[ONE])[0].backends == {"1:4 fp32": "reference"}
    with using("reference"):
        assert measured()[0].backends == {"2:4 fp32": "reference"}


def test_the_matrices_have_the_pattern():
    weight = random_pruned(16, 32, FOUR, torch.Generator().manual_seed(0))
    assert not count_violations(weight != 0, FOUR)
    assert (weight != 0).sum() == 16 * 32 // 2


def test_a_wrong_product_is_not_timed(monkeypatch):
    wrong = Backend("wrong", "", lambda *shape: None, lambda packed: packed, lambda x, packed: x @ x.new_ones(48, 64))
    monkeypatch.setattr(product, "choose_backend", lambda *shape: wrong)
    with pytest.raises(NumericsError, match="2:4 fp32, 64x48, batch 1: relative error"):
        measured()


def test_shapes_that_do_not_fit_are_refused(monkeypatch):
    with pytest.raises(PatternError, match="64x50: 50 columns are not a multiple of 4, as 2:4 needs"):
        list(measure_shape(64, 50, [1], patterns=[TWO], dtypes=[torch.float32]))
    with pytest.raises(BackendError, match=r"take about \d+\.\d GB and .* are free"):
        list(measure_shape(1 << 22, 1 << 20, [1], patterns=[TWO], dtypes=[torch.float32]))


def test_there_are_enough_copies_to_exceed_the_cache(monkeypatch):
    monkeypatch.setattr(product, "largest_cache", lambda: 1 << 20)
    round_bytes = 64 * 64 * 4 * 5 // 2  # stock, prepacked and half for packed
    copies = copies_beyond_cache(64, 64, [TWO], [torch.float32])
    assert (copies - 1) * round_bytes >= 2 << 20 > (copies - 2) * round_bytes
    assert copies_beyond_cache(1024, 1024, [TWO], [torch.float32]) == 2
    assert copies_beyond_cache(4, 8, [TWO], [torch.float32]) == 64


def test_the_machine_is_described():
    description = hardware.hardware()
    assert description["processor"]
    assert description["cpus"] >= 1
    assert description["torch"] == torch.__version__
    assert hardware.largest_cache() > 0
    json.dumps(description)


def test_the_plot_has_a_line_for_each_ratio_and_hollow_points_for_those_not_trusted():
    from xml.etree import ElementTree

    unsteady = replace(MEASURED, batch=4, timings={**MEASURED.timings, "2:4 bf16": Timing((1.0, 1.0, 2.0, 3.0, 3.0))})
    svg = plot([MEASURED, unsteady], "a <machine>")
    tree = ElementTree.fromstring(svg)  # noqa: S314
    texts = [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <machine>", "64x32 2:4 fp32", "64x32 2:4 bf16", "1", "4", "1.0x", "2.0x"} <= set(texts)
    fills = [circle.get("fill") for circle in tree.iter("{http://www.w3.org/2000/svg}circle")]
    assert fills.count("white") == 1
    assert len(fills) == 6  # two lines of two points, and the legend


def test_a_machine_that_does_not_list_its_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_CACHE_FOLDER", tmp_path)
    (tmp_path / "index0").mkdir()
    assert hardware.largest_cache() == 64 << 20
    (tmp_path / "index0" / "level").write_text("2\n")
    assert hardware.hardware()["caches"] == []
    (tmp_path / "index0" / "size").write_text("2048K\n")
    assert hardware.hardware()["caches"] == ["L2 2048K"]
    assert hardware.largest_cache() == 2 << 20
