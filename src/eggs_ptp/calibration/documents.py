"""Files to documents."""

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from eggs_ptp.calibration.tokens import Tokenizer
from eggs_ptp.errors import CalibrationError

_CHAT_FIELDS: Final = ("messages", "conversations")
_ROLES: Final = {"human": "user", "gpt": "assistant"}  # the names of ShareGPT's `from`


def read_documents(
    path: str | os.PathLike[str], *, field: str = "text", tokenizer: Tokenizer | None = None
) -> list[str]:
    """The documents of a file, in order.

    `.jsonl`: one JSON object a line, its text under `field`, or a chat under `messages` or `conversations`, which the
    tokenizer's chat template turns into text. `.json`: the same, or one list of such objects or strings. `.parquet`:
    the same, one row each. Any other file is UTF-8 text, one document. A `.gz` behind the name is unpacked.

    Raises:
        CalibrationError: missing, unreadable or empty; not UTF-8 (byte offset); broken JSON, or a document without
            its field (line).
    """
    path = Path(path)
    kinds = [suffix.lower() for suffix in path.suffixes]
    kind = next((kind for kind in reversed(kinds) if kind != ".gz"), "")
    if kind == ".parquet":
        rows = _parquet_rows(path)
    else:
        text = _text(path)
        if kind == ".json" and text.lstrip()[:1] == "[":
            rows = _list_rows(path, text)
        elif kind in (".jsonl", ".json"):
            rows = _line_rows(path, text)
        else:
            rows = iter([(str(path), text)])
    documents = [document_of(where, row, field, tokenizer) for where, row in rows]
    if not any(document.strip() for document in documents):
        raise CalibrationError(f"{path} holds no text; give a file with some")
    return documents


def document_of(where: str, row: Any, field: str, tokenizer: Tokenizer | None) -> str:
    """The text of one row of a data set; `where` says which.

    Raises:
        CalibrationError: no such field, or no text in it.
    """
    if isinstance(row, str):
        text = row
    elif not isinstance(row, Mapping):
        raise CalibrationError(f"{where}: expected an object with a {field!r} field, came {type(row).__name__}")
    elif field not in _CHAT_FIELDS and field in row:
        text = row[field]
    else:
        chat = next((name for name in (field, *_CHAT_FIELDS) if name in row), None)
        if chat is None:
            known = ", ".join(map(repr, row)) or "nothing"
            raise CalibrationError(
                f"{where}: there is no {field!r} field, only {known}; "
                "name the field that holds the text (--set calibration.text_field=NAME)"
            )
        text = _chat_text(f"{where}, {chat!r}", row[chat], tokenizer)
    if not isinstance(text, str):
        raise CalibrationError(f"{where}: {field!r} should be text, but is {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CalibrationError(f"{where}: character {error.start} is half of a surrogate pair, so not text") from None
    return text


def _chat_text(where: str, chat: Any, tokenizer: Tokenizer | None) -> Any:
    if not isinstance(chat, list) or not all(isinstance(turn, Mapping) for turn in chat) or not chat:
        raise CalibrationError(f"{where}: expected a list of messages, came {type(chat).__name__}")
    messages = []
    for number, turn in enumerate(chat, 1):
        role = turn.get("role") or turn.get("from")
        content = turn.get("content") or turn.get("value")
        if not isinstance(role, str) or not isinstance(content, str):
            raise CalibrationError(f"{where}, message {number}: expected role and content (or from and value) as text")
        messages.append({"role": _ROLES.get(role, role), "content": content})
    template = getattr(tokenizer, "apply_chat_template", None)
    if template is None:
        raise CalibrationError(f"{where}: a chat needs a tokenizer with a chat template; give plain text instead")
    try:
        return template(messages, tokenize=False)
    except Exception as error:  # templates are programs of other people's, and raise what they like
        reason = " ".join(str(error).split())[:200]
        raise CalibrationError(
            f"{where}: the tokenizer's chat template fails ({reason}); give plain text instead"
        ) from error


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except FileNotFoundError:
        raise CalibrationError(f"there is no file {path}; check the name") from None
    except (OSError, EOFError) as error:
        raise CalibrationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not data.strip():
        raise CalibrationError(f"{path} is empty; give a file with text")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}; "
            "save it as UTF-8, or give it its own suffix (.parquet, .npy, .gz)"
        ) from None


def _line_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): JSON strings may hold other line separators as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise CalibrationError(
                    f"{path}, line {number}, column {error.colno}: not JSON: {error.msg}; expected one object a line"
                ) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, or as many brackets
                raise CalibrationError(f"{path}, line {number}: cannot be read as JSON: {error}") from None


def _list_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # as above
        raise CalibrationError(f"{path}: cannot be read as JSON: {error}") from None
    return ((f"{path}, item {number}", row) for number, row in enumerate(rows, 1))


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
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
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CalibrationError(f"{path} cannot be read as Parquet: {reason}") from None
