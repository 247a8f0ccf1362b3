import bz2
import gzip
import json
import lzma
import sys

import pyarrow
import pytest
from pyarrow import parquet

from eggs_ptp.calibration.documents import read_documents, read_text_file
from eggs_ptp.errors import CalibrationError


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def refusal(path, **options):
    with pytest.raises(CalibrationError) as caught:
        read_documents(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Chat:
    def apply_chat_template(self, messages, tokenize):
        assert tokenize is False
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in messages)


@pytest.mark.parametrize("name", ["a.txt", "wiki.test.raw", "README"])
def test_a_text_file_is_one_unchanged_document(tmp_path, name):
    assert read_documents(written(tmp_path / name, "one\r\n\n two\n")) == ["one\r\n\n two\n"]


def test_a_byte_order_mark_is_removed(tmp_path):
    assert read_documents(written(tmp_path / "a.jsonl", "\ufeff" + lines({"text": "a"}))) == ["a"]


def test_json_lines_skip_blank_lines_and_keep_empty_texts(tmp_path):
    content = '{"text": "a\u2028b"}\n\n{"text": "", "id": 3}\r\n{"text": "c"}'
    assert read_documents(written(tmp_path / "a.jsonl", content)) == ["a\u2028b", "", "c"]


def test_another_field(tmp_path):
    assert read_documents(written(tmp_path / "a.jsonl", lines({"body": "a"})), field="body") == ["a"]


@pytest.mark.parametrize("rows", [[{"text": "a"}, {"text": "b"}], ["a", "b"]])
def test_json_list(tmp_path, rows):
    assert read_documents(written(tmp_path / "a.json", json.dumps(rows, indent=1))) == ["a", "b"]


def test_compressed_json_lines(tmp_path):
    data = gzip.compress(lines({"text": "a"}, {"text": "b"}).encode())
    assert read_documents(written(tmp_path / "c4-train.00000-of-01024.json.gz", data)) == ["a", "b"]


def test_parquet(tmp_path):
    table = pyarrow.table({"text": ["a", "b"], "id": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_documents(tmp_path / "a.parquet") == ["a", "b"]


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]


@pytest.mark.parametrize("row", [{"messages": CHAT}, {"conversations": SHAREGPT}, {"conversations": CHAT}])
@pytest.mark.parametrize("field", ["text", "messages"])
def test_chats_are_rendered_by_the_template(tmp_path, row, field):
    path = written(tmp_path / "a.jsonl", lines(row))
    assert read_documents(path, field=field, tokenizer=Chat()) == ["<user>hi<assistant>yes"]


def test_chats_in_parquet(tmp_path):
    parquet.write_table(pyarrow.table({"messages": [CHAT]}), tmp_path / "a.parquet")
    assert read_documents(tmp_path / "a.parquet", tokenizer=Chat()) == ["<user>hi<assistant>yes"]


def test_chats_with_a_tokenizer_of_transformers(tmp_path, tokenizer):
    from transformers import PreTrainedTokenizerFast

    real = PreTrainedTokenizerFast(tokenizer_object=tokenizer.inner)
    path = written(tmp_path / "a.jsonl", lines({"messages": CHAT}))
    line = refusal(path, tokenizer=real)
    assert line.startswith(f"{path}, line 1, 'messages': the tokenizer's chat template fails (")
    real.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    assert read_documents(path, tokenizer=real) == ["[user] hi [assistant] yes "]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "A.JSONL", "a.ndjson", "a.json", "a.jsonl.gz", "rows.txt", "rows", "a.bak"]
)
def test_the_rows_decide_and_not_the_name(tmp_path, name):
    content = lines({"text": "a b"}, {"text": "c"}).encode()
    path = written(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    assert read_text_file(path) == (["a b", "c"], True)


@pytest.mark.parametrize("name", ["a.parquet", "A.PARQUET", "train-00000-of-00001"])
def test_parquet_by_any_name(tmp_path, name):
    parquet.write_table(pyarrow.table({"text": ["a b", "c"]}), tmp_path / name)
    assert read_text_file(tmp_path / name) == (["a b", "c"], True)


def test_compressed_files_by_any_name(tmp_path):
    path = written(tmp_path / "a.jsonl", gzip.compress(lines({"text": "a"}).encode()))
    assert read_text_file(path) == (["a"], True)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"text": "a"}\nand prose',
        '{"body": "a"}',
        '[{"body": "a"}]',
        '[{"text": "a"}, "b"]',
        '[{"text": "a"}] and prose',
        '["a", "b"]',
        "[1] A footnote.",
        '"text"',
        '{"text": "a"}\n{"body": "b"}',
    ],
)
def test_texts_that_only_resemble_rows_are_one_document(tmp_path, content):
    assert read_text_file(written(tmp_path / "a.txt", content)) == ([content], False)


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSON", "a.txt", "rows", "a.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_rows_by_any_name(tmp_path, name, indent):
    content = json.dumps([{"text": "a b"}, {"text": "c"}], indent=indent).encode()
    path = written(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    assert read_text_file(path) == (["a b", "c"], True)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "row"])
@pytest.mark.parametrize("row", [{"text": "a b"}, {"text": "a b", "meta": {"page": 1}}])
def test_one_object_over_several_lines(tmp_path, name, row):
    assert read_text_file(written(tmp_path / name, json.dumps(row, indent=2) + "\n")) == (["a b"], True)


def test_rows_inside_an_object_are_refused(tmp_path):
    path = written(tmp_path / "b.json", json.dumps({"train": [{"text": "a b"}]}, indent=2))
    assert refusal(path) == (
        f"{path}: there is no 'text' field, only 'train'; name the field that holds the text "
        "(--set calibration.text_field=NAME)"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lzma.compress(b"some text"), "xz; decompress it, or compress it with gzip"),
        (bz2.compress(b"some text"), "bzip2; decompress it, or compress it with gzip"),
        (b"\x28\xb5\x2f\xfd\x04\x00\x49", "Zstandard; decompress it"),
        ("some text".encode("utf-16"), "UTF-16; save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_files_that_hold_no_text_yet_are_named(tmp_path, data, message, name):
    path = written(tmp_path / name, data)
    assert refusal(path).startswith(f"{path}: expected UTF-8 text, got ")
    assert message in refusal(path)


@pytest.mark.parametrize("damage", [slice(12, 30), slice(-8, None), slice(-40, -20)])
def test_damaged_gzip(tmp_path, damage):
    data = bytearray(gzip.compress(bytes(range(32, 127)) * 50))
    data[damage] = b"\xff" * len(data[damage])
    path = written(tmp_path / "a.txt.gz", bytes(data))
    assert refusal(path).startswith(f"{path} cannot be read: ")
    cut = written(tmp_path / "b.txt.gz", gzip.compress(b"some text")[:-9])
    assert refusal(cut).startswith(f"{cut} cannot be read: ")


def test_missing_file(tmp_path):
    assert refusal(tmp_path / "no.txt") == f"there is no file {tmp_path / 'no.txt'}; check the name"
    assert refusal(tmp_path / "no.parquet") == f"there is no file {tmp_path / 'no.parquet'}; check the name"


def test_a_folder(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} cannot be read: Is a directory"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
@pytest.mark.parametrize("content", ["", " \n\n"])
def test_empty_file(tmp_path, name, content):
    path = written(tmp_path / name, content)
    assert refusal(path) == f"{path} is empty; give a file with text"


@pytest.mark.parametrize(("name", "content"), [("a.json", "[]"), ("a.jsonl", '{"text": " "}\n')])
def test_documents_without_text(tmp_path, name, content):
    path = written(tmp_path / name, content)
    assert refusal(path) == f"{path} holds no text; give a file with some"


def test_not_utf_8_names_the_byte_and_its_offset(tmp_path):
    path = written(tmp_path / "a.txt", "caf\xe9 au lait".encode("latin-1"))
    assert refusal(path).startswith(f"{path} is not UTF-8: byte 0xe9 at offset 3; ")


def test_broken_gzip(tmp_path):
    path = written(tmp_path / "a.txt.gz", b"plain")
    assert refusal(path).startswith(f"{path} cannot be read: Not a gzipped file")


def test_broken_json_names_line_and_column(tmp_path):
    path = written(tmp_path / "a.jsonl", lines({"text": "a"}) + '{"text": "b"\n')
    assert refusal(path).startswith(f"{path}, line 2, column 13: not JSON: ")
    path = written(tmp_path / "a.json", '[\n"a"\n"b"]')
    assert refusal(path).startswith(f"{path}, line 3, column 1: not JSON: ")


def test_a_line_without_the_field_names_file_line_and_fields(tmp_path):
    path = written(tmp_path / "a.jsonl", lines({"text": "a"}, {"body": "b", "id": 1}))
    assert refusal(path) == (
        f"{path}, line 2: there is no 'text' field, only 'body', 'id'; "
        "name the field that holds the text (--set calibration.text_field=NAME)"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None}, "line 1: expected text under 'text', got NoneType"),
        ({"text": ["a"]}, "line 1: expected text under 'text', got list"),
        (3, "line 1: expected an object with a 'text' field, got int"),
        ({"text": "a\ud800"}, "line 1: character 1 is an unpaired surrogate, which is not text"),
        ({}, "line 1: there is no 'text' field, only nothing; name the field"),
        ({"messages": "hi"}, "line 1, 'messages': expected a list of messages, got str"),
        ({"messages": [{"role": "user"}]}, "line 1, 'messages', message 1: expected role and content"),
        ({"messages": CHAT}, "line 1, 'messages': a chat needs a tokenizer with a chat template"),
    ],
)
def test_rows_without_text(tmp_path, row, message):
    path = written(tmp_path / "a.jsonl", lines(row))
    assert refusal(path).startswith(f"{path}, {message}")


def test_broken_parquet(tmp_path):
    path = written(tmp_path / "a.parquet", "text")
    assert refusal(path).startswith(f"{path} cannot be read as Parquet: ")


def test_parquet_without_the_column(tmp_path):
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").startswith(f"{tmp_path / 'a.parquet'}, row 1: there is no 'text' field")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = written(tmp_path / "a.parquet", "PAR1")
    assert "needs pyarrow; pip install pyarrow" in refusal(path)
