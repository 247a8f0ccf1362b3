"""Evaluation texts: data sets of the hub as papers use them, and local files."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation import text as text_module
from eggs_ptp.evaluation.text import is_wikitext_file, load_text


@pytest.fixture
def hub(monkeypatch):
    """The requests to the hub, which has 2000 documents."""
    requests = []

    def documents(name, **options):
        requests.append((name, options))
        return [f"document {i}" for i in range(2000)]

    monkeypatch.setattr(text_module, "hub_documents", documents)
    return requests


@pytest.mark.parametrize("name", [None, "wikitext2"])
def test_wikitext_is_the_complete_test_split_joined_by_blank_lines(hub, name):
    text = load_text(name)
    assert hub == [("Salesforce/wikitext:wikitext-2-raw-v1", {"download": True, "split": "test", "flag": "--text"})]
    assert (len(text.documents), text.joiner, text.windows, text.protocol) == (2000, "\n\n", None, "packed")


def test_c4_is_the_part_of_the_validation_file_that_papers_use(hub):
    text = load_text("c4")
    assert hub == [("allenai/c4", {"download": False, "split": "validation", "flag": "--text"})]
    assert (len(text.documents), text.joiner, text.windows) == (1100, " ", 256)


def test_a_file_of_wikitext_has_the_rows_of_the_data_set(tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text(" \n = Title = \n \n A sentence . \n")
    text = load_text(str(path))
    assert text.documents == ["", " = Title = \n", "", " A sentence . \n"]
    assert text.source == f"{path}, 4 rows"


@pytest.mark.parametrize("name", ["wiki.test.raw.gz", "WIKI.TEST.RAW", "wiki.valid.tokens.gz"])
def test_a_file_of_wikitext_has_the_same_rows_by_other_endings(tmp_path, name):
    data = b" \n = Title = \n \n A sentence . \n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    text = load_text(str(path))
    assert (text.protocol, text.documents) == ("packed", ["", " = Title = \n", "", " A sentence . \n"])


def test_a_file_that_is_called_as_wikitext_is_and_has_rows(tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    text = load_text(str(path))
    assert (text.protocol, text.documents) == ("documents", ["one", "two"])


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("a/wiki.test.raw", "test", True),
        ("wiki.test.tokens.gz", "test", True),
        ("wiki.valid.raw", "test", False),
        ("wiki.valid.raw", None, True),
        ("my.wiki.test.raw", None, False),
        ("wiki.test.raw/a.txt", None, False),
    ],
)
def test_the_names_of_wikitext_files(name, split, expected):
    assert is_wikitext_file(name, split) is expected


def test_the_file_of_the_test_split_has_as_many_rows_as_the_data_set(shared):
    assert len(load_text(str(shared / "data/wikitext2/wiki.test.raw")).documents) == 4358


def test_other_files_are_read_unchanged(tmp_path):
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("one\n\ntwo\n")
    lines.write_text(json.dumps({"story": "one"}) + "\n")
    assert load_text(str(plain)).documents == ["one\n\ntwo\n"]
    text = load_text(str(lines), field="story")
    assert (text.documents, text.protocol) == (["one"], "documents")


def test_rows_are_evaluated_by_documents_whatever_the_name(tmp_path):
    rows = [{"text": "a b c"}, {"text": "d e f"}]
    lines = "\n".join(map(json.dumps, rows))
    for name in ("c.jsonl", "C2.JSONL", "c.ndjson", "c.json", "rows.txt"):
        (tmp_path / name).write_text(lines)
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    paths = list(tmp_path.iterdir())
    assert len(paths) == 8
    for path in paths:
        text = load_text(str(path))
        assert (text.protocol, text.documents) == ("documents", ["a b c", "d e f"]), path


@pytest.mark.parametrize("name", ["a.txt", "notes.jsonl.txt", "a.md", "a.txt.gz"])
def test_texts_are_packed_whatever_the_name(tmp_path, name):
    data = b"Not rows, but a text.\n"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert load_text(str(tmp_path / name)).protocol == "packed"


def test_an_unknown_name_is_refused():
    with pytest.raises(CalibrationError, match=r"no file wikitext3; .*: wikitext2, c4"):
        load_text("wikitext3")
