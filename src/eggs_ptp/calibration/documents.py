"""Reads documents from files: text, JSON lines, JSON, Parquet, and chats in any of these."""

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from eggs_ptp.calibration.tokens import Tokenizer
from eggs_ptp.errors import CalibrationError

_CHAT_FIELDS: Final = ("messages", "conversations")
_ROLES: Final = {"human": "user", "gpt": "assistant"}  # ShareGPT's names for the roles


def read_documents(
    path: str | os.PathLike[str], *, field: str = "text", tokenizer: Tokenizer | None = None
) -> list[str]:
    """Return the documents of a file, in order.

    The name decides the format. `.jsonl` has one JSON object per line, with its text under `field`, or with a chat
    under `messages` or `conversations`, which the tokenizer's chat template renders. `.json` has the same, or one list
    of such objects or of strings. `.parquet` has such rows. Any other file is one document of UTF-8 text. Files whose
    names end in `.gz` are decompressed.

    Args:
        path: The file.
        field: Field of a row that holds its text.
        tokenizer: The tokenizer whose chat template renders chats.

    Raises:
        CalibrationError: The file is missing, unreadable or empty; it is not UTF-8 (byte offset) or not JSON (line); or
            a document has no such field (line).
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")
    if suffix == ".parquet":
        rows = _parquet_rows(path)
    else:
        text = _read_text(path)
        if suffix == ".json" and text.lstrip()[:1] == "[":
            rows = _list_rows(path, text)
        elif suffix in (".jsonl", ".json"):
            rows = _line_rows(path, text)
        else:
            rows = iter([(str(path), text)])
    documents = [document_of(location, row, field, tokenizer) for location, row in rows]
    if not any(document.strip() for document in documents):
        raise CalibrationError(f"{path} holds no text; give a file with some")
    return documents


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
    elif field not in _CHAT_FIELDS and field in row:
        text = row[field]
    else:
        chat_field = next((name for name in (field, *_CHAT_FIELDS) if name in row), None)
        if chat_field is None:
            existing = ", ".join(map(repr, row)) or "nothing"
            raise CalibrationError(
                f"{location}: there is no {field!r} field, only {existing}; "
                "name the field that holds the text (--set calibration.text_field=NAME)"
            )
        text = _render_chat(f"{location}, {chat_field!r}", row[chat_field], tokenizer)
    if not isinstance(text, str):
        raise CalibrationError(f"{location}: expected text under {field!r}, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CalibrationError(
            f"{location}: character {error.start} is an unpaired surrogate, which is not text"
        ) from None
    return text


def _render_chat(location: str, chat: Any, tokenizer: Tokenizer | None) -> Any:
    """Return a chat as text, rendered by the tokenizer's chat template."""
    if not isinstance(chat, list) or not all(isinstance(turn, Mapping) for turn in chat) or not chat:
        raise CalibrationError(f"{location}: expected a list of messages, got {type(chat).__name__}")
    messages = []
    for number, turn in enumerate(chat, 1):
        role = turn.get("role") or turn.get("from")
        content = turn.get("content") or turn.get("value")
        if not isinstance(role, str) or not isinstance(content, str):
            raise CalibrationError(
                f"{location}, message {number}: expected role and content (or from and value) as text"
            )
        messages.append({"role": _ROLES.get(role, role), "content": content})
    template = getattr(tokenizer, "apply_chat_template", None)
    if template is None:
        raise CalibrationError(f"{location}: a chat needs a tokenizer with a chat template; give plain text instead")
    try:
        return template(messages, tokenize=False)
    except Exception as error:  # templates are programs from the model's folder and may raise anything
        reason = " ".join(str(error).split())[:200]
        raise CalibrationError(
            f"{location}: the tokenizer's chat template fails ({reason}); give plain text instead"
        ) from error


def _read_text(path: Path) -> str:
    """Return the text of a file, decompressed if its name ends in `.gz`."""
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
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CalibrationError(f"{path} cannot be read as Parquet: {reason}") from None
