"""Record files: the JSON records of other verbs, recognised by their keys."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from eggs_ptp.checkpoint.staging import MANIFEST
from eggs_ptp.core.json_file import JSON_ERRORS
from eggs_ptp.errors import CheckpointError


class Kind(StrEnum):
    """The command that has written a record."""

    evaluation = "eggs evaluate"
    bench = "eggs bench"
    diagnosis = "eggs diagnose"
    comparison = "eggs compare"
    compared_run = "eggs compare, one run"
    sample = "eggs generate"
    demo = "eggs demo"


@dataclass(frozen=True)
class Record:
    """A record.

    Attributes:
        path: Its file.
        kind: The command that has written it.
        data: Its content.
    """

    path: Path
    kind: Kind
    data: dict[str, Any]

    @property
    def model(self) -> str | None:
        """The model or folder that the record is about, as the user named it when it was written."""
        name = next((self.data[key] for key in ("model", "folder", "output") if self.data.get(key)), None)
        return name if isinstance(name, str) else None


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not in the report, and the reason."""

    path: Path
    reason: str


# A record has all keys of a row; the first row that fits decides. Two kinds of number are named "perplexity".
_KEYS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (Kind.comparison, ("table", "records", "columns")),
    (Kind.demo, ("samples", "rows", "dense")),
    (Kind.bench, ("hardware", "products")),
    (Kind.diagnosis, ("whole", "matrices")),
    (Kind.compared_run, ("perplexity", "evaluation", "versions")),
    (Kind.sample, ("model", "prompt", "text")),
    (Kind.evaluation, ("nll", "protocol")),
    (Kind.evaluation, ("model", "perplexity")),
    (Kind.evaluation, ("model", "fidelity")),
    (Kind.evaluation, ("model", "tasks")),
)
_MODEL_FILES = ("config.json", "tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "model.safetensors")


def read_record(path: Path) -> Record:
    """Read a record and recognise which command has written it.

    Raises:
        CheckpointError: The file cannot be read, is truncated or broken, or is not a record.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})") from error
    except JSON_ERRORS as error:
        raise CheckpointError(f"not a complete JSON document, truncated or broken ({error})") from error
    if isinstance(data, dict):
        for kind, keys in _KEYS:
            if all(key in data for key in keys):
                return Record(path, kind, data)
        if {"recipe", "matrices"} <= data.keys():
            raise CheckpointError(f"this is {MANIFEST} of a folder: give the folder itself")
    expected = ", ".join(kind for kind in Kind if kind != Kind.compared_run)
    raise CheckpointError(f"not a record; expected one of {expected}")


def read_records(requested: Iterable[Path], folders: Iterable[Path]) -> tuple[list[Record], list[Skipped]]:
    """Read the requested records, and those in or next to pruned folders: NAME.*, NAME-* and NAME/*.

    A requested file that is not a record is skipped with the reason; of the files found near a folder, only broken
    ones are.

    Args:
        requested: Record files, or folders of them.
        folders: Pruned folders.

    Returns:
        The records, and the files that were skipped.
    """
    records: list[Record] = []
    skipped: list[Skipped] = []
    seen: set[Path] = set()
    files = []
    for path in requested:
        files += [(file, True) for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    for folder in folders:
        files += [(file, False) for file in record_candidates(folder)]
    for file, is_requested in files:
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        try:
            records.append(read_record(file))
        except CheckpointError as error:
            if is_requested or "JSON" in str(error):
                skipped.append(Skipped(file, str(error)))
    return records, skipped


def record_candidates(folder: Path) -> list[Path]:
    """Return the JSON files that may be records of a pruned folder: in it, or next to it and named after it."""
    folder = folder.resolve()
    inside = [
        path
        for path in sorted(folder.glob("*.json"))
        if path.name != MANIFEST and not path.stem.endswith("_config") and not path.name.startswith(_MODEL_FILES)
    ]
    prefixes = tuple(f"{folder.name}{separator}" for separator in ".-_")
    next_to_it = [path for path in sorted(folder.parent.glob("*.json")) if path.name.startswith(prefixes)]
    return inside + next_to_it


def number(data: Mapping[str, Any], *keys: str) -> float | None:
    """Return the value of the first key that holds a number; None if none does."""
    for key in keys:
        value = data.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
