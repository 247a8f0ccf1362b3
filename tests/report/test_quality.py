import pytest
from pruned import bench, evaluation, keep, perplexity

from eggs_ptp.report.quality import Figure, quality
from eggs_ptp.report.record import read_record


def read(tmp_path, data):
    return quality(read_record(keep(tmp_path / "r.json", data)))


def test_a_whole_record(tmp_path):
    found = read(tmp_path, evaluation("a", "org/base"))
    assert found.perplexity.figure == Figure(28.0, pytest.approx(0.56))  # 2 % of the loss is 2 % of the perplexity
    assert found.perplexity.protocol == (
        "text: wikitext2, test, 250 windows of 256 tokens, 63750 tokens predicted, windows SHA-256 ab12cd34"
    )
    assert found.tasks == {"boolq_local, acc": Figure(0.6, 0.05)}
    assert found.fidelity == {"KL divergence (nats)": Figure(0.31, 0.004), "top-1 agreement": Figure(0.72, 0.002)}
    assert found.hidden == [0.1, 0.25]
    assert found.differences == {
        "perplexity, ratio": Figure(1.4, 0.01, 1.37, 1.43),
        "boolq_local, acc": Figure(-0.1, 0.03, -0.16, -0.04),
    }
    assert found.reference.perplexity.figure.value == 20.0
    assert found.reference.perplexity.protocol == found.perplexity.protocol
    assert found.reference.tasks["boolq_local, acc"].value == 0.7


def test_flat_and_compared_ones(tmp_path):
    flat = read(tmp_path, {"model": "a", "text": "/somewhere/text.txt", **perplexity(28.0, stride=64)})
    assert flat.perplexity.protocol.startswith("text: text.txt, 250 windows of 256 tokens, stride 64")
    assert (flat.tasks, flat.fidelity, flat.hidden, flat.reference) == ({}, {}, [], None)
    compared = {"perplexity": 31.0, "evaluation": perplexity(31.0, standard_error=None), "versions": {}}
    assert read(tmp_path, compared).perplexity.figure == Figure(31.0)


def test_what_was_not_measured_is_none(tmp_path):
    nothing = {"perplexity": None, "tasks": {}, "fidelity": None, "reference": None, "paired": None}
    found = read(tmp_path, {**evaluation("a", "b"), **nothing})
    assert (found.perplexity, found.tasks, found.fidelity, found.differences) == (None, {}, {}, {})
    assert read(tmp_path, bench("a")) is None


def test_other_windows_are_another_way_of_measuring(tmp_path):
    first = read(tmp_path, evaluation("a", "b")).perplexity.protocol
    data = evaluation("a", "b")
    data["perplexity"]["sha256"] = "0123456789"
    assert read(tmp_path, data).perplexity.protocol != first
