"""JSON records: written atomically, and checked when read."""

import json

import pytest

from eggs_ptp.core.records import read_record, write_record
from eggs_ptp.errors import CheckpointError


def test_a_record_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "folder" / "record.json"
    record = {"kind": "evaluation", "format": 1, "values": [1.5, None, "ü"]}
    write_record(path, record)
    assert read_record(path) == record
    assert read_record(path, kind="evaluation") == record
    assert read_record(path, kind="evaluation", format_number=1, command="eggs evaluate") == record
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_a_record_is_indented_json_with_a_final_newline(tmp_path):
    write_record(tmp_path / "record.json", {"a": 1})
    assert (tmp_path / "record.json").read_text() == '{\n "a": 1\n}\n'


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/a\.json: cannot be written \(.*\)$"):
        write_record(tmp_path / "file" / "a.json", {})


@pytest.mark.parametrize("content", [b"", b'{"kind": "evalu', b"\xff", b"[" * 100_000, b"1" * 5000])
def test_truncated_or_broken_json_is_refused(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"record\.json: not valid JSON, or truncated$"):
        read_record(path)
    with pytest.raises(CheckpointError, match=r"or truncated; write it with eggs evaluate --record$"):
        read_record(path, command="eggs evaluate --record")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"expected a JSON object, got list; write it with eggs evaluate$"),
        (3, r"expected a JSON object, got int; write it"),
        ({"format": 1}, r"expected a record of kind 'evaluation', got None; write it"),
        ({"kind": "benchmark", "format": 1}, r"expected a record of kind 'evaluation', got 'benchmark'; write it"),
        ({"kind": "evaluation", "format": 9}, r"expected a record of format 1, got 9; write it"),
        ({"kind": "evaluation"}, r"expected a record of format 1, got None; write it"),
    ],
)
def test_other_kinds_and_formats_are_refused(tmp_path, content, message):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        read_record(path, kind="evaluation", format_number=1, command="eggs evaluate")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.json: cannot be read \(No such file or directory\)$"):
        read_record(tmp_path / "none.json")
