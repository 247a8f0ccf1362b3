import pytest
from synthetic_records import bench, evaluation, perplexity, write_record

from eggs_ptp.report.quality import Measurement, read_quality
from eggs_ptp.report.record_files import read_record


def read(tmp_path, data):
    return read_quality(read_record(write_record(tmp_path / "r.json", data)))


def test_a_complete_record(tmp_path):
    quality = read(tmp_path, evaluation("a", "org/base"))
    assert quality.perplexity.measurement == Measurement(
        28.0, pytest.approx(0.56)
    )  # 2 % of the loss is 2 % of the perplexity
    assert quality.perplexity.protocol == (
        "text: wikitext2, test, 250 windows of 256 tokens, 63750 tokens predicted, windows SHA-256 ab12cd34"
    )
    assert quality.tasks == {"boolq_local, acc": Measurement(0.6, 0.05)}
    assert quality.fidelity == {
        "KL divergence (nats)": Measurement(0.31, 0.004),
        "top-1 agreement": Measurement(0.72, 0.002),
    }
    assert quality.hidden == [0.1, 0.25]
    assert quality.differences == {
        "perplexity, ratio": Measurement(1.4, 0.01, 1.37, 1.43),
        "boolq_local, acc": Measurement(-0.1, 0.03, -0.16, -0.04),
    }
    assert quality.reference.perplexity.measurement.value == 20.0
    assert quality.reference.perplexity.protocol == quality.perplexity.protocol
    assert quality.reference.tasks["boolq_local, acc"].value == 0.7


def test_a_perplexity_may_be_the_whole_record_or_belong_to_a_comparison(tmp_path):
    flat = read(tmp_path, {"model": "a", "text": "/somewhere/text.txt", **perplexity(28.0, stride=64)})
    assert flat.perplexity.protocol.startswith("text: text.txt, 250 windows of 256 tokens, stride 64")
    assert (flat.tasks, flat.fidelity, flat.hidden, flat.reference) == ({}, {}, [], None)
    compared = {"perplexity": 31.0, "evaluation": perplexity(31.0, standard_error=None), "versions": {}}
    assert read(tmp_path, compared).perplexity.measurement == Measurement(31.0)


def test_what_was_not_measured_is_none(tmp_path):
    nothing = {"perplexity": None, "tasks": {}, "fidelity": None, "reference": None, "paired": None}
    quality = read(tmp_path, {**evaluation("a", "b"), **nothing})
    assert (quality.perplexity, quality.tasks, quality.fidelity, quality.differences) == (None, {}, {}, {})
    assert read(tmp_path, bench("a")) is None


def test_other_windows_are_another_protocol(tmp_path):
    first = read(tmp_path, evaluation("a", "b")).perplexity.protocol
    data = evaluation("a", "b")
    data["perplexity"]["sha256"] = "0123456789"
    assert read(tmp_path, data).perplexity.protocol != first


def test_windows_that_begin_with_the_begin_token_are_another_protocol(tmp_path):
    data = evaluation("a", "b")
    first = read(tmp_path, data).perplexity.protocol
    data["perplexity"]["begin_tokens"] = [2]
    assert read(tmp_path, data).perplexity.protocol == first.replace(
        "256 tokens,", "256 tokens, each begins with the begin token,"
    )
    data["perplexity"]["begin_tokens"] = []
    assert read(tmp_path, data).perplexity.protocol == first
