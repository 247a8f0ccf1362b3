"""Identity of a comparison run: the file name of its record, and the record of a finished run."""

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eggs_ptp.core.records import read_record
from eggs_ptp.errors import CheckpointError
from eggs_ptp.recipe.recipe import Recipe


def run_identity(recipe: Recipe | None, model: str, folder: Path, evaluation: dict[str, Any]) -> str:
    """Return the name of a run's record: a hash of everything that can change the run's result.

    That is the recipe, the evaluation settings, the model's files and the files that the recipe or the evaluation names
    (by size and modification time), this package's version, and the source files of the user's own steps.

    Args:
        recipe: How the model is pruned; None for the dense model.
        model: The model as the user named it. The name of a local folder does not count: its files do.
        folder: The folder that holds the model's files.
        evaluation: Settings of the evaluation, as plain data.

    Returns:
        16 hexadecimal digits.
    """
    recipe_table = recipe.to_dict() if recipe else None
    files = sorted(file for file in folder.iterdir() if file.is_file())
    files += [path for text in _strings([recipe_table, evaluation]) if (path := Path(text)).is_file()]
    contents = {
        "recipe": recipe_table,
        "model": None if Path(model).is_dir() else model,  # a folder may be moved
        "files": [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        "steps": [hashlib.sha256(path.read_bytes()).hexdigest() for path in _user_step_files(recipe)],
        "evaluation": evaluation,
        "version": version("eggs-ptp"),
    }
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]


def read_finished_run(path: Path) -> dict[str, Any] | None:
    """Return the record of a finished run; None if there is none, or if a crash left it incomplete."""
    try:
        record = read_record(path)
    except CheckpointError:
        return None
    return record if "perplexity" in record else None


def _strings(data: Any) -> Iterator[str]:
    """Yield all strings in plain data."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _strings(value)


def _user_step_files(recipe: Recipe | None) -> list[Path]:
    """Return the source files of the user's own steps: a recipe holds the names of steps, not their code."""
    if recipe is None:
        return []
    rules = [rule for rule in recipe.targets if not rule.skip]
    steps = [step for rule in (None, *rules) for step in recipe.bound(rule).bound_steps]
    paths = {Path(step.function.__code__.co_filename) for step in steps if ":" in step.name}
    return sorted(path for path in paths if path.is_file())
