"""Records: JSON files of the other verbs, told apart by what is in them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from eggs_ptp.checkpoint.draft import MANIFEST
from eggs_ptp.errors import CheckpointError
from eggs_ptp.models.json_file import JSON_FAULTS


class Kind(StrEnum):
    """What wrote a record."""

    evaluation = "eggs evaluate"
    bench = "eggs bench"
    diagnosis = "eggs diagnose"
    comparison = "eggs compare"
    compared_run = "eggs compare, one run"
    sample = "eggs generate"
    demo = "eggs demo"


@dataclass(frozen=True)
class Record:
    """A record: its file, what wrote it, and its content."""

    path: Path
    kind: Kind
    data: dict[str, Any]

    @property
    def model(self) -> str | None:
        """The model, or folder, that it is about, as it was named then."""
        named = next((self.data[key] for key in ("model", "folder", "output") if self.data.get(key)), None)
        return str(named) if isinstance(named, str) else None


@dataclass(frozen=True)
class Skipped:
    """A file or folder that the report is without, and why."""

    path: Path
    reason: str


# A record has all keys of one of these, the first that fits; two kinds of number go by "perplexity".
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
_NOT_RECORDS = ("config.json", "tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "model.safetensors")


def read_record(path: Path) -> Record:
    """Read a record and find out what wrote it.

    Raises:
        CheckpointError: it cannot be read, is cut short or broken, or is no record of ours.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})") from error
    except JSON_FAULTS as error:
        raise CheckpointError(f"not whole JSON, cut short or broken ({error})") from error
    if isinstance(data, dict):
        for kind, keys in _KEYS:
            if all(key in data for key in keys):
                return Record(path, kind, data)
        if {"recipe", "matrices"} <= data.keys():
            raise CheckpointError(f"{MANIFEST} of a folder: give the folder itself")
    raise CheckpointError("no record of " + ", ".join(kind for kind in Kind if kind != Kind.compared_run))


def read_records(given: Iterable[Path], folders: Iterable[Path]) -> tuple[list[Record], list[Skipped]]:
    """The records given (files, or folders of them) and those beside the runs: NAME.*, NAME-*, and NAME/*.

    One that was given and is none is skipped with its reason; of those found beside a run only broken ones are.
    """
    found: list[Record] = []
    skipped: list[Skipped] = []
    seen: set[Path] = set()
    files = [(file, True) for path in given for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    files += [(file, False) for folder in folders for file in beside(folder)]
    for file, asked in files:
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        try:
            found.append(read_record(file))
        except CheckpointError as error:
            if asked or "JSON" in str(error):
                skipped.append(Skipped(file, str(error)))
    return found, skipped


def beside(folder: Path) -> list[Path]:
    """JSON files that may be records of a run: in its folder, or next to it and named for it."""
    whole = folder.resolve()
    inside = [
        path for path in sorted(whole.glob("*.json")) if path.name != MANIFEST and not path.stem.endswith("_config")
    ]
    inside = [path for path in inside if not path.name.startswith(_NOT_RECORDS)]
    outside = (path for path in sorted(whole.parent.glob("*.json")) if path.name[len(whole.name) : len(whole.name) + 1])
    named = [p for p in outside if p.name.startswith(whole.name) and p.name[len(whole.name)] in ".-_"]
    return inside + named


def number(data: Mapping[str, Any], *keys: str) -> float | None:
    """The first of the keys that holds a number; None where none does."""
    for key in keys:
        value = data.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
