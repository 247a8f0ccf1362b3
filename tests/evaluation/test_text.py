import json

import pytest

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation import text
from eggs_ptp.evaluation.text import find_text


@pytest.fixture
def hub(monkeypatch):
    asked = []

    def documents(name, **how):
        asked.append((name, how))
        return [f"document {i}" for i in range(2000)]

    monkeypatch.setattr(text, "hub_documents", documents)
    return asked


@pytest.mark.parametrize("name", [None, "wikitext2"])
def test_wikitext_is_the_whole_test_split_joined_by_blank_lines(hub, name):
    found = find_text(name)
    assert hub == [("Salesforce/wikitext:wikitext-2-raw-v1", {"whole": True, "split": "test", "flag": "--text"})]
    assert (len(found.documents), found.joiner, found.windows, found.protocol) == (2000, "\n\n", None, "packed")


def test_c4_is_what_the_field_takes_of_its_validation_file(hub):
    found = find_text("c4")
    assert hub == [("allenai/c4", {"whole": False, "split": "validation", "flag": "--text"})]
    assert (len(found.documents), found.joiner, found.windows) == (1100, " ", 256)


def test_a_copy_of_wikitext_has_the_rows_of_the_data_set(tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text(" \n = Title = \n \n A sentence . \n")
    found = find_text(str(path))
    assert found.documents == ["", " = Title = \n", "", " A sentence . \n"]
    assert found.source == f"{path}, 4 rows"


def test_the_copy_has_as_many_rows_as_the_data_set(shared):
    assert len(find_text(str(shared / "data/wikitext2/wiki.test.raw")).documents) == 4358


def test_other_files_are_as_they_are(tmp_path):
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("one\n\ntwo\n")
    lines.write_text(json.dumps({"story": "one"}) + "\n")
    assert find_text(str(plain)).documents == ["one\n\ntwo\n"]
    found = find_text(str(lines), field="story")
    assert (found.documents, found.protocol) == (["one"], "documents")


def test_says_which_names_there_are():
    with pytest.raises(CalibrationError, match="no file wikitext3; texts that have a name are wikitext2, c4"):
        find_text("wikitext3")
