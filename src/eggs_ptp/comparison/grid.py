"""Grid: which runs a comparison is made of, and what identifies each."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eggs_ptp.core.pattern import parse_pattern
from eggs_ptp.errors import PatternError
from eggs_ptp.recipe.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """One run: a row of the table (`label`), a pattern, a seed, and the recipe that they come to."""

    label: str
    pattern: str
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Row:
    """A method of the comparison, by the name that the table shows, with the changes to the recipe it stands for."""

    label: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """Rows x patterns x seeds over a common recipe. `left_out` says which cells have no meaning, and why."""

    recipe: Recipe
    rows: tuple[Row, ...]
    patterns: tuple[str, ...]
    seeds: tuple[int, ...]
    title: str = ""

    def cells(self) -> Iterator[Cell]:
        """Every run, method by method.

        Raises:
            RecipeError: changes that make no recipe.
        """
        left_out = self.left_out()
        for row in self.rows:
            for pattern in self.patterns:
                if (row.label, pattern) in left_out:
                    continue
                seeds = self.seeds if self._recipe(row, pattern, 0).bound().seeded else self.seeds[:1]
                for seed in seeds:
                    yield Cell(row.label, pattern, seed, self._recipe(row, pattern, seed))

    def left_out(self) -> dict[tuple[str, str], str]:
        """Cells whose method is not defined for their pattern, with the reason."""
        found = {}
        for row in self.rows:
            for pattern in self.patterns:
                try:
                    bound = self._recipe(row, pattern, 0).bound()
                    bound.check_pattern(parse_pattern(pattern), row.label)
                except PatternError as error:
                    found[row.label, pattern] = str(error)
        return found

    def _recipe(self, row: Row, pattern: str, seed: int) -> Recipe:
        table = self.recipe.model_dump()
        return Recipe(**{**table, **row.changes, "pattern": pattern, "seed": seed})


def identity(cell: Cell, model: Path, evaluation: dict[str, Any]) -> str:
    """Name the record of a run: the recipe, the model's files and how it is evaluated, hashed.

    Files count by name, size and time of change.
    """
    files = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(model.iterdir())
        if file.suffix in (".safetensors", ".json")
    ]
    text = cell.recipe.calibration.text
    if text and (path := Path(text)).is_file():
        files.append((text, path.stat().st_size, path.stat().st_mtime_ns))
    whole = json.dumps([cell.recipe.to_dict(), files, evaluation], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]
