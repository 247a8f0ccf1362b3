"""Reads documents from files: text, JSON lines, JSON, Parquet, and chats in any of these."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from eggs_ptp.calibration.chat import CHAT_FIELDS, render_chat
from eggs_ptp.calibration.tokens import Tokenizer
from eggs_ptp.errors import CalibrationError

_JSON_SUFFIXES: Final = (".jsonl", ".ndjson", ".json")
_PARQUET: Final = b"PAR1"  # what these files begin with
_GZIP: Final = b"\x1f\x8b"
_FOREIGN: Final = {  # what files begin with that are no text, what they are, and what to do
    b"\x28\xb5\x2f\xfd": ("compressed with Zstandard", "decompress it, or compress it with gzip"),
    b"\xfd7zXZ\x00": ("compressed with xz", "decompress it, or compress it with gzip"),
    b"BZh": ("compressed with bzip2", "decompress it, or compress it with gzip"),
    b"PK\x03\x04": ("a zip archive", "give a file from inside of it"),
    b"ARROW1": ("an Arrow file", "give Parquet or JSON lines"),
    b"\xff\xfe": ("UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8"),
}


class TextFile(NamedTuple):
    """The content of a file.

    Attributes:
        documents: Its documents, in order.
        has_rows: Whether they are rows of a data set (JSON lines, a JSON list, Parquet), each a document of its own;
            otherwise the file is one text.
    """

    documents: list[str]
    has_rows: bool


def read_documents(
    path: str | os.PathLike[str], *, field: str = "text", tokenizer: Tokenizer | None = None
) -> list[str]:
    """Return the documents of a file, in order; see `read_text_file`.

    Args:
        path: The file.
        field: Field of a row that holds its text.
        tokenizer: The tokenizer whose chat template renders chats.

    Raises:
        CalibrationError: See `read_text_file`.
    """
    return read_text_file(path, field=field, tokenizer=tokenizer).documents


def read_text_file(
    path: str | os.PathLike[str], *, field: str = "text", tokenizer: Tokenizer | None = None
) -> TextFile:
    """Read the documents of a file.

    JSON lines have one object per line, with its text under `field`, or with a chat under `messages` or
    `conversations`, which the tokenizer's chat template renders. Instead there may be one such object over several
    lines, or one list of such objects or of strings. `.parquet` has such rows. Any other file is one document of UTF-8
    text, unless it consists of such objects, one per line or in one list, whatever its name. Gzipped files are
    decompressed.

    Args:
        path: The file.
        field: Field of a row that holds its text.
        tokenizer: The tokenizer whose chat template renders chats.

    Raises:
        CalibrationError: The file is missing, unreadable or empty; it is not UTF-8 (byte offset) or not JSON (line); or
            a row has no such field, or a chat that cannot be rendered (row).
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")
    has_rows = True
    if suffix == ".parquet" or _starts_with(path, _PARQUET):
        rows = _parquet_rows(path)
    else:
        text = _read_text(path)
        if (suffix in _JSON_SUFFIXES and text.lstrip()[:1] == "[") or _is_json_list(text, field):
            rows = _list_rows(path, text)
        elif (row := _object_over_lines(text)) and (suffix in _JSON_SUFFIXES or _has_document(row, field)):
            rows = iter([(str(path), row)])
        elif suffix in _JSON_SUFFIXES or _is_json_lines(text, field):
            rows = _line_rows(path, text)
        else:
            has_rows = False
            rows = iter([(str(path), text)])
    documents = [document_of(location, row, field, tokenizer) for location, row in rows]
    if not any(document.strip() for document in documents):
        raise CalibrationError(f"{path} holds no text; give a file with some")
    return TextFile(documents, has_rows)


def document_of(location: str, row: Any, field: str, tokenizer: Tokenizer | None) -> str:
    """Return the text of a row of a data set.

    Args:
        location: Which row it is, for error messages.
        row: A string, or an object whose text is under `field`, or which holds a chat.
        field: The field.
        tokenizer: The tokenizer whose chat template renders chats.

    Raises:
        CalibrationError: The row has no such field, or the field holds no text.
    """
    if isinstance(row, str):
        text = row
    elif not isinstance(row, Mapping):
        raise CalibrationError(f"{location}: expected an object with a {field!r} field, got {type(row).__name__}")
    else:
        chat_field = next((name for name in (field, *CHAT_FIELDS) if row.get(name) is not None), None)
        if chat_field is None and field not in row:
            existing = ", ".join(map(repr, row)) or "nothing"
            raise CalibrationError(
                f"{location}: there is no {field!r} field, only {existing}; "
                "name the field that holds the text (--set calibration.text_field=NAME)"
            )
        is_text = chat_field is None or (chat_field == field and not _is_chat(field, row[field]))
        text = row[field] if is_text else render_chat(location, row, str(chat_field), tokenizer)
    if not isinstance(text, str):
        raise CalibrationError(f"{location}: expected text under {field!r}, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CalibrationError(
            f"{location}: character {error.start} is an unpaired surrogate, which is not text"
        ) from None
    return text


def without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a table without the nulls inside of its values.

    Tables have all keys in all rows: a key that only one message has is null in all others.
    """
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _is_chat(field: str, value: Any) -> bool:
    """Return whether a field holds a chat: by its name, or as it holds messages."""
    return field in CHAT_FIELDS or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _is_json_lines(text: str, field: str) -> bool:
    """Return whether every line that is not blank is an object with a text or a chat."""
    if text.lstrip()[:1] != "{":
        return False
    try:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError):
        return False
    return all(_has_document(row, field) for row in rows)


def _is_json_list(text: str, field: str) -> bool:
    """Return whether a text is a list of nothing but objects with a text or a chat."""
    start = text.lstrip()
    if start[:1] != "[" or start[1:].lstrip()[:1] != "{":
        return False
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return all(_has_document(row, field) for row in rows)


def _object_over_lines(text: str) -> dict[str, Any] | None:
    """Return the object that a text of several lines is; None if it is anything else, such as JSON lines."""
    if text.lstrip()[:1] != "{" or "\n" not in text.strip():
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _has_document(row: Any, field: str) -> bool:
    return isinstance(row, dict) and any(name in row for name in (field, *CHAT_FIELDS))


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:  # reported where the file is read
        return False


def _read_text(path: Path) -> str:
    """Return the text of a file, decompressed if it is gzipped."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix.lower() == ".gz" or data.startswith(_GZIP) else data
    except FileNotFoundError:
        raise CalibrationError(f"there is no file {path}; check the name") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CalibrationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not data.strip():
        raise CalibrationError(f"{path} is empty; give a file with text")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if foreign := next((each for magic, each in _FOREIGN.items() if data.startswith(magic)), None):
            raise CalibrationError(f"{path}: expected UTF-8 text, got {foreign[0]}; {foreign[1]}") from None
        raise CalibrationError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}; "
            "save it as UTF-8, or give it its own suffix (.parquet, .npy, .gz)"
        ) from None


def _line_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Yield the location and the content of each line of a JSON-lines file."""
    # Not splitlines(): JSON strings may contain other line separators.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise CalibrationError(
                    f"{path}, line {number}, column {error.colno}: not JSON: {error.msg}; expected one object per line"
                ) from None
            except (
                ValueError,
                RecursionError,
            ) as error:  # a number of thousands of digits, or thousands of open brackets
                raise CalibrationError(f"{path}, line {number}: cannot be read as JSON: {error}") from None


def _list_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Return the location and the content of each item of a JSON list."""
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # see `_line_rows`
        raise CalibrationError(f"{path}: cannot be read as JSON: {error}") from None
    return ((f"{path}, item {number}", row) for number, row in enumerate(rows, 1))


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the location and the content of each row of a Parquet file."""
    if not path.is_file():
        raise CalibrationError(f"there is no file {path}; check the name")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CalibrationError(f"{path}: Parquet needs pyarrow; pip install pyarrow, or give .jsonl or .txt") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", without_nulls(row)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CalibrationError(f"{path} cannot be read as Parquet: {reason}") from None
