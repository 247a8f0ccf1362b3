"""Evaluation records: one JSON document each, written whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from eggs_ptp.core.whole_file import write_whole
from eggs_ptp.errors import CheckpointError
from eggs_ptp.models.json_file import JSON_FAULTS

KIND: Final = "evaluation"
FORMAT: Final = 1


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Keep a record, whole or not at all.

    Raises:
        CheckpointError: it cannot be written there.
    """
    write_whole(path, json.dumps(record, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Read a record back.

    Raises:
        CheckpointError: there is none, or it is no evaluation record that this version can read.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except JSON_FAULTS:
        raise CheckpointError(f"{path}: not JSON, or cut short; evaluate again with --record") from None
    if not isinstance(found, dict) or (found.get("kind"), found.get("format")) != (KIND, FORMAT):
        raise CheckpointError(f"{path}: expected an evaluation record of format {FORMAT} (eggs evaluate --record)")
    return found
