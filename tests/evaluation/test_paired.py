import math

import pytest

from eggs_ptp.comparison.result import Comparison
from eggs_ptp.comparison.table import detail_rows
from eggs_ptp.evaluation.estimate import difference
from eggs_ptp.evaluation.paired import paired_ratio

TARGETS = [10, 10, 10]


def record(losses, sha256="ab", **keys):
    nats = sum(losses) / sum(TARGETS)
    evaluation = {"losses": losses, "targets": TARGETS, "sha256": sha256, "windows": 3, "tokens": 30}
    return {"perplexity": math.exp(nats), "evaluation": evaluation, **keys}


def test_one_seed_is_the_paired_ratio_of_an_evaluation():
    first, second = [21.0, 24.0, 30.0], [20.0, 22.0, 27.0]
    assert paired_ratio([record(first)], [record(second)]) == difference(first, second, TARGETS).exp()


def test_losses_are_means_over_seeds():
    seeds = [record([20.0, 22.0, 30.0]), record([22.0, 26.0, 30.0])]
    reference = [record([20.0, 22.0, 27.0]), record([20.0, 22.0, 27.0])]
    assert paired_ratio(seeds, reference) == difference([21.0, 24.0, 30.0], [20.0, 22.0, 27.0], TARGETS).exp()


@pytest.mark.parametrize(
    "reference",
    [
        [],
        [record([20.0, 22.0, 27.0], sha256="other windows")],
        [{"perplexity": 3.0, "evaluation": {"sha256": "ab", "windows": 3, "tokens": 30}}],
        [record([20.0, 22.0, 27.0]), {"perplexity": 3.0, "evaluation": {}}],
    ],
)
def test_what_cannot_be_paired_has_no_ratio(reference):
    assert paired_ratio([record([21.0, 24.0, 30.0])], reference) is None


def test_a_table_has_the_best_first_and_the_costs():
    costs = {"processor_seconds": 1.26, "peak_memory_bytes": 2e8}
    comparison = Comparison(
        model="m", title="", heads=("method",), rows=(("a",), ("b",)), columns=("2:4",),
        dense=record([10.0, 10.0, 10.0]),
        records={(("a",), "2:4"): [record([30.0, 31.0, 32.0], **costs)], (("b",), "2:4"): [record([20.0, 20.0, 21.0])]},
    )  # fmt: skip
    best, other = detail_rows(comparison)
    assert best == ["b", "2:4", f"{math.exp(61 / 30):.2f}", "2.8", "best", "-", "-"]
    ratio = difference([30.0, 31.0, 32.0], [20.0, 20.0, 21.0], TARGETS).exp()
    assert other[4:] == [f"{ratio.value:.1f} ({ratio.low:.2f}-{ratio.high:.2f})", "1.3", "200"]
    assert comparison.warnings[0].startswith("too little text: 3 windows, 30 tokens")


def test_records_without_losses_are_named():
    old = {"perplexity": 9.0, "evaluation": {"windows": 40, "tokens": 20_000}}
    comparison = Comparison("m", "", ("method",), (("a",),), ("2:4",), dense=old, records={(("a",), "2:4"): [old]})
    assert [warning.split(",")[0] for warning in comparison.warnings] == ["some records are of an older version"]
    assert detail_rows(comparison)[0][3:] == ["1.00", "best", "-", "-"]
