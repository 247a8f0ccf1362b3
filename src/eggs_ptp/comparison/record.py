"""Records of runs: what one is called, how it is kept and found again."""

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eggs_ptp.core.whole_file import write_whole
from eggs_ptp.models.json_file import JSON_FAULTS
from eggs_ptp.recipe.recipe import Recipe


def identity(recipe: Recipe | None, model: str, folder: Path, evaluation: dict[str, Any]) -> str:
    """The name of a run's record: a hash of all that can change its result; no recipe is the dense model.

    That is the recipe, how it is evaluated, the files of the model (in `folder`) and those that the recipe or the
    evaluation names (by size and time of change), this package's version, and the source files of steps that are not
    the package's own.
    """
    table = recipe.to_dict() if recipe else None
    files = sorted(file for file in folder.iterdir() if file.is_file())
    files += [path for text in _texts([table, evaluation]) if (path := Path(text)).is_file()]
    whole = {
        "recipe": table,
        "model": None if Path(model).is_dir() else model,  # a folder is its files, wherever it stands
        "files": [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        "steps": [hashlib.sha256(path.read_bytes()).hexdigest() for path in _own_steps(recipe)],
        "evaluation": evaluation,
        "version": version("eggs-ptp"),
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def read_record(path: Path) -> dict[str, Any] | None:
    """The record at `path`; None where there is none, or what a crash left of one."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, *JSON_FAULTS):
        return None
    return found if isinstance(found, dict) and "perplexity" in found else None


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Keep a record, whole or not at all.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    write_whole(path, json.dumps(record, indent=1) + "\n")


def _texts(data: Any) -> Iterator[str]:
    """All strings in plain data."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _texts(value)


def _own_steps(recipe: Recipe | None) -> list[Path]:
    """Files of the user's own steps, whose code a recipe only names."""
    if recipe is None:
        return []
    rules = [rule for rule in recipe.targets if not rule.skip]
    steps = [step for rule in (None, *rules) for step in recipe.bound(rule).links]
    paths = {Path(step.function.__code__.co_filename) for step in steps if ":" in step.name}
    return sorted(path for path in paths if path.is_file())
