"""Evaluation records: what `eggs evaluate --record` writes and `--against` reads."""

from pathlib import Path
from typing import Any, Final

from eggs_ptp.core.records import read_record

KIND: Final = "evaluation"
FORMAT: Final = 1


def read_evaluation_record(path: Path) -> dict[str, Any]:
    """Read an evaluation record.

    Raises:
        CheckpointError: The file cannot be read, or is not an evaluation record of a format that this version reads.
    """
    return read_record(path, kind=KIND, format_number=FORMAT, command="eggs evaluate --record")
