"""JSON records: measurements that a command saves, one JSON object a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eggs_ptp.core.atomic_write import write_text_atomically
from eggs_ptp.core.json_file import JSON_ERRORS
from eggs_ptp.errors import CheckpointError


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as indented JSON, atomically: a reader sees the previous file or the new one, never a part.

    Args:
        path: The file to write; its folder is created if it is missing.
        record: Plain data that JSON can hold.

    Raises:
        CheckpointError: The file cannot be written.
    """
    write_text_atomically(path, json.dumps(record, indent=1) + "\n")


def read_record(
    path: Path, *, kind: str | None = None, format_number: int | None = None, command: str | None = None
) -> dict[str, Any]:
    """Read a record, and check that it is of the expected kind and format.

    Args:
        path: The file to read.
        kind: Expected value of the record's key `kind`; None accepts a record of any kind.
        format_number: Expected value of its key `format`; None accepts any.
        command: The command that writes such records, for the error messages.

    Returns:
        The record.

    Raises:
        CheckpointError: The file cannot be read, is not valid JSON, or is a record of another kind or format.
    """
    advice = f"; write it with {command}" if command else ""
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except JSON_ERRORS:
        raise CheckpointError(f"{path}: not valid JSON, or truncated{advice}") from None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(record).__name__}{advice}")
    expected = {"kind": kind, "format": format_number}
    for key, value in expected.items():
        if value is not None and record.get(key) != value:
            raise CheckpointError(f"{path}: expected a record of {key} {value!r}, got {record.get(key)!r}{advice}")
    return record
