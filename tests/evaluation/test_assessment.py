import json
import math

import pytest

from eggs_ptp.errors import CalibrationError, CheckpointError, ModelError
from eggs_ptp.evaluation.assessment import Results, assess
from eggs_ptp.evaluation.estimate import difference
from eggs_ptp.evaluation.perplexity import Perplexity, perplexity
from eggs_ptp.evaluation.record import read_record, write_record
from eggs_ptp.evaluation.subject import load_subject
from eggs_ptp.evaluation.text import Text
from eggs_ptp.evaluation.zeroshot import TaskResult

TEXT = Text("a text", ["The first sentence of some text. " * 12, "And another document. " * 9])


@pytest.fixture(scope="module")
def pair(tiny):
    return load_subject("one", tiny()), load_subject("other", tiny(seed=1))


def test_both_are_measured_on_the_same_windows(pair):
    found = assess(*pair, text=TEXT, seqlen=32, stride=16, max_windows=8)
    for subject, results in zip(pair, (found.results, found.reference), strict=True):
        alone = perplexity(
            subject.model, subject.tokenizer, TEXT.documents, protocol="packed", seqlen=32, stride=16, max_windows=8
        )
        assert results.perplexity.value == pytest.approx(alone.value, rel=1e-6)
        assert results.perplexity.losses == pytest.approx(alone.losses, rel=1e-6)
        assert results.perplexity.sha256 == alone.sha256
    ratio = found.perplexity_ratio()
    assert ratio.value == pytest.approx(found.results.perplexity.value / found.reference.perplexity.value, rel=1e-9)
    assert ratio.low < ratio.value < ratio.high
    assert ratio.pairs == 8
    assert found.fidelity.kl.value > 0


def test_a_record_pairs_as_the_model_does(pair, tmp_path):
    how = {"text": TEXT, "seqlen": 32}
    both = assess(*pair, **how)
    write_record(tmp_path / "other.json", assess(pair[1], **how).to_record({}))
    later = assess(pair[0], record=read_record(tmp_path / "other.json"), **how)
    assert later.against == "other"
    assert later.fidelity is None
    assert later.perplexity_ratio().to_dict() == pytest.approx(both.perplexity_ratio().to_dict(), rel=1e-6)
    with pytest.raises(
        CalibrationError, match="other: expected perplexity on the same windows or items, but it was me"
    ):
        assess(pair[0], record=read_record(tmp_path / "other.json"), text=TEXT, seqlen=16)


def test_the_record_says_everything_and_is_plain(pair):
    whole = assess(*pair, text=TEXT, seqlen=32).to_record({"torch": "2"})
    assert json.loads(json.dumps(whole)) == whole
    assert (whole["kind"], whole["format"], whole["model"], whole["against"]) == ("evaluation", 1, "one", "other")
    one = whole["perplexity"]
    assert (one["protocol"], one["seqlen"], one["stride"]) == ("packed", 32, 32)
    assert len(one["losses"]) == len(one["targets"]) == one["windows"]
    assert math.exp(sum(one["losses"]) / sum(one["targets"])) == pytest.approx(one["value"])
    assert whole["paired"]["perplexity_ratio"]["pairs"] == one["windows"]
    assert len(whole["fidelity"]["hidden"]) == 2
    assert whole["reference"]["perplexity"]["sha256"] == one["sha256"]


def test_one_model_alone_has_nothing_to_pair(pair):
    whole = assess(pair[0], text=TEXT, seqlen=32).to_record({})
    assert (whole["against"], whole["reference"], whole["fidelity"], whole["paired"]) == (None, None, None, None)


def test_results_come_back_from_their_record():
    task = TaskResult("boolq", "ab", {"acc": (1.0, 0.0, 1.0)}, 1)
    results = Results(
        Perplexity(2.0, "packed", 8, 2, 14, 0, 0.7, None, 1.0, losses=(1.0, 2.0), targets=(7, 7)), {"boolq": task}
    )
    assert Results.from_record(json.loads(json.dumps(results.to_record()))) == results
    assert task.mean("acc").value == pytest.approx(2 / 3)


def test_tasks_pair_over_items():
    ours, theirs = (
        TaskResult("t", "ab", {"acc": (1.0, 0.0, 1.0, 1.0)}, 0),
        TaskResult("t", "ab", {"acc": (1.0, 1.0, 0.0, 1.0)}, 0),
    )
    other = TaskResult("t", "cd", {"acc": (1.0,)}, 0)
    one = Results(None, {"t": ours})
    one.check_pairs(Results(None, {"t": theirs}), "other")
    got = difference(ours.scores["acc"], theirs.scores["acc"], [1] * 4)
    assert (got.value, got.low) == (0.0, -got.high)
    for wrong, message in ((Results(None, {"t": other}), "measured on others"), (Results(None), "was not measured")):
        with pytest.raises(CalibrationError, match=f"other: expected t on the same .* it {'was ' * ('on' in message)}"):
            one.check_pairs(wrong, "other")


def test_different_tokens_cannot_be_paired(pair, shared):
    stories = load_subject("stories", shared / "data/models/tinystories-656k")
    with pytest.raises(ModelError, match="one and stories have different tokens"):
        assess(pair[0], stories, text=TEXT, seqlen=32)


def test_records_are_written_whole_and_read_with_care(tmp_path):
    path = tmp_path / "new" / "record.json"
    write_record(path, {"kind": "evaluation", "format": 1})
    assert read_record(path) == {"kind": "evaluation", "format": 1}
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_record(path / "below.json", {})
    path.write_text('{"kind": "evalu')
    with pytest.raises(CheckpointError, match="not JSON, or cut short"):
        read_record(path)
    path.write_text('{"kind": "evaluation", "format": 9}')
    with pytest.raises(CheckpointError, match="expected an evaluation record of format 1"):
        read_record(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_record(tmp_path / "none.json")
