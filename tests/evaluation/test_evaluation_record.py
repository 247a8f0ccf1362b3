"""Evaluation records: only those of a known format are read."""

import pytest

from eggs_ptp.core.records import write_record
from eggs_ptp.errors import CheckpointError
from eggs_ptp.evaluation.evaluation_record import FORMAT, KIND, read_evaluation_record


def test_a_record_of_this_format_is_read(tmp_path):
    write_record(tmp_path / "record.json", {"kind": KIND, "format": FORMAT, "model": "a"})
    assert read_evaluation_record(tmp_path / "record.json") == {"kind": "evaluation", "format": 1, "model": "a"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "evalu', "not valid JSON, or truncated; write it with eggs evaluate --record"),
        ('{"kind": "evaluation", "format": 9}', "expected a record of format 1, got 9; write it with eggs evaluate"),
        ('{"perplexity": 1.0}', "expected a record of kind 'evaluation', got None; write it with eggs evaluate"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_evaluation_record(path)


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_evaluation_record(tmp_path / "none.json")
