"""Assessments: both models are measured on the same windows and items, and records restore the results."""

import json
import math

import pytest

from eggs_ptp.core.records import write_record
from eggs_ptp.errors import CalibrationError, ModelError
from eggs_ptp.evaluation.assessment import Results, assess
from eggs_ptp.evaluation.estimate import difference
from eggs_ptp.evaluation.evaluation_record import read_evaluation_record
from eggs_ptp.evaluation.model_under_test import load_model_under_test
from eggs_ptp.evaluation.perplexity import Perplexity, perplexity
from eggs_ptp.evaluation.text import EvaluationText
from eggs_ptp.evaluation.zeroshot import TaskResult

TEXT = EvaluationText("a text", ["The first sentence of some text. " * 12, "And another document. " * 9])


@pytest.fixture(scope="module")
def models(tiny):
    return load_model_under_test("first", tiny()), load_model_under_test("second", tiny(seed=1))


def test_both_models_are_measured_on_the_same_windows(models):
    assessment = assess(*models, text=TEXT, seqlen=32, stride=16, max_windows=8)
    for model_under_test, results in zip(models, (assessment.results, assessment.reference), strict=True):
        alone = perplexity(
            model_under_test.model,
            model_under_test.tokenizer,
            TEXT.documents,
            protocol="packed",
            seqlen=32,
            stride=16,
            max_windows=8,
        )
        assert results.perplexity.value == pytest.approx(alone.value, rel=1e-6)
        assert results.perplexity.losses == pytest.approx(alone.losses, rel=1e-6)
        assert results.perplexity.sha256 == alone.sha256
    ratio = assessment.perplexity_ratio()
    expected = assessment.results.perplexity.value / assessment.reference.perplexity.value
    assert ratio.value == pytest.approx(expected, rel=1e-9)
    assert ratio.low < ratio.value < ratio.high
    assert ratio.pairs == 8
    assert assessment.fidelity.kl.value > 0


def test_a_record_is_compared_like_the_model(models, tmp_path):
    options = {"text": TEXT, "seqlen": 32}
    with_model = assess(*models, **options)
    path = tmp_path / "second.json"
    write_record(path, assess(models[1], **options).to_record({}))
    with_record = assess(models[0], record=read_evaluation_record(path), **options)
    assert with_record.against == "second"
    assert with_record.fidelity is None
    ratio = with_record.perplexity_ratio().to_dict()
    assert ratio == pytest.approx(with_model.perplexity_ratio().to_dict(), rel=1e-6)
    message = "second: expected perplexity on the same windows or items, but it was measured on others"
    with pytest.raises(CalibrationError, match=message):
        assess(models[0], record=read_evaluation_record(path), text=TEXT, seqlen=16)


def test_the_record_is_complete_and_plain(models):
    record = assess(*models, text=TEXT, seqlen=32).to_record({"torch": "2"})
    assert json.loads(json.dumps(record)) == record
    assert (record["kind"], record["format"], record["model"], record["against"]) == (
        "evaluation",
        1,
        "first",
        "second",
    )
    measured = record["perplexity"]
    assert (measured["protocol"], measured["seqlen"], measured["stride"]) == ("packed", 32, 32)
    assert len(measured["losses"]) == len(measured["targets"]) == measured["windows"]
    assert math.exp(sum(measured["losses"]) / sum(measured["targets"])) == pytest.approx(measured["value"])
    assert record["paired"]["perplexity_ratio"]["pairs"] == measured["windows"]
    assert len(record["fidelity"]["hidden"]) == 2
    assert record["reference"]["perplexity"]["sha256"] == measured["sha256"]


def test_a_single_model_is_compared_with_nothing(models):
    record = assess(models[0], text=TEXT, seqlen=32).to_record({})
    assert (record["against"], record["reference"], record["fidelity"], record["paired"]) == (None, None, None, None)


def test_results_are_restored_from_their_record():
    task = TaskResult("boolq", "ab", {"acc": (1.0, 0.0, 1.0)}, 1)
    measured = Perplexity(2.0, "packed", 8, 2, 14, 0, 0.7, None, 1.0, losses=(1.0, 2.0), targets=(7, 7))
    results = Results(measured, {"boolq": task})
    assert Results.from_record(json.loads(json.dumps(results.to_record()))) == results
    assert task.mean("acc").value == pytest.approx(2 / 3)


def test_tasks_are_paired_over_items():
    first = TaskResult("t", "ab", {"acc": (1.0, 0.0, 1.0, 1.0)}, 0)
    second = TaskResult("t", "ab", {"acc": (1.0, 1.0, 0.0, 1.0)}, 0)
    results = Results(None, {"t": first})
    results.check_comparable(Results(None, {"t": second}), "reference")
    got = difference(first.scores["acc"], second.scores["acc"], [1] * 4)
    assert (got.value, got.low) == (0.0, -got.high)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Results(None, {"t": TaskResult("t", "cd", {"acc": (1.0,)}, 0)}), "it was measured on others"),
        (Results(None), "it was not measured"),
    ],
)
def test_results_on_other_items_are_refused(reference, message):
    results = Results(None, {"t": TaskResult("t", "ab", {"acc": (1.0, 0.0, 1.0, 1.0)}, 0)})
    with pytest.raises(CalibrationError, match=f"reference: expected t on the same windows or items, but {message}"):
        results.check_comparable(reference, "reference")


def test_models_with_different_vocabularies_are_refused(models, shared):
    stories = load_model_under_test("stories", shared / "data/models/tinystories-656k")
    with pytest.raises(ModelError, match="first and stories have different vocabularies"):
        assess(models[0], stories, text=TEXT, seqlen=32)
