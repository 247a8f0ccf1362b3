"""Grid: which runs a comparison is made of."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from eggs_ptp.core.pattern import parse_pattern
from eggs_ptp.errors import PatternError, RecipeError
from eggs_ptp.method.method import BoundMethod
from eggs_ptp.recipe.recipe import Recipe

Labels = tuple[str, ...]
Place = tuple[Labels, str]  # a row's labels and a column's label


@dataclass(frozen=True)
class Row:
    """A line of the table: what stands at its left, and how its recipe differs from the common one.

    `seeds` is how many it runs with, where that is not what all do; `origin` says in messages where it came from.
    """

    labels: Labels
    changes: Mapping[str, Any]
    seeds: int | None = None
    origin: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table: its head (empty: the model's name), and changes laid over those of every row."""

    label: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run: where it stands in the table, and its recipe."""

    place: Place
    recipe: Recipe

    def __str__(self) -> str:
        return f"{where(self.place)}, seed {self.recipe.seed}"


@dataclass(frozen=True)
class Grid:
    """Rows x columns x seeds over a common recipe, whose seed is the first; `heads` stand above the rows' labels.

    `evaluation` has arguments of `api.evaluate`, where they are not its defaults.

    Raises:
        RecipeError: labels that occur twice, or not as many as there are heads; changes that make no recipe; no run.
    """

    recipe: Recipe
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    seeds: int = 3
    heads: Labels = ("method",)
    title: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.labels) != len(self.heads):
                raise RecipeError(
                    f"{row.origin}label: {len(self.heads)} expected, one under each of the heads "
                    f"{', '.join(self.heads)}; came {', '.join(row.labels) or 'none'}"
                )
        for what, labels in (("rows", [row.labels for row in self.rows]), ("columns", [c.label for c in self.columns])):
            twice = [label for label, count in Counter(labels).items() if count > 1]
            if twice:
                name = twice[0] if isinstance(twice[0], str) else " ".join(twice[0])
                raise RecipeError(f"{what}: two are labelled {name!r}; give each a label of its own")
        if not self.rows or not self.columns:
            raise RecipeError("a comparison needs a row and a column")
        if len(self.left_out) == len(self._recipes):
            raise RecipeError(f"nothing to compare: {next(iter(self.left_out.values()))}")

    def cells(self) -> Iterator[Cell]:
        """Every run that is defined, seed after seed; a method that no seed can change runs with the first alone."""
        for place in range(max(self._seeds(row) for row in self.rows)):
            for row in self.rows:
                for column in self.columns:
                    recipe = self._recipes[row.labels, column.label]
                    seeds = self._seeds(row) if _is_seeded(recipe) else 1
                    if place < seeds and (row.labels, column.label) not in self.left_out:
                        seeded = recipe.model_copy(update={"seed": recipe.seed + place})
                        yield Cell((row.labels, column.label), seeded)

    @cached_property
    def left_out(self) -> dict[Place, str]:
        """Cells whose method is not defined for their pattern, with the reason."""
        found = {}
        for place, recipe in self._recipes.items():
            try:
                for bound, pattern in _methods(recipe):
                    bound.check_pattern(parse_pattern(pattern), where(place))
            except PatternError as error:
                found[place] = str(error)
        return found

    def _seeds(self, row: Row) -> int:
        return self.seeds if row.seeds is None else row.seeds

    @cached_property
    def _recipes(self) -> dict[Place, Recipe]:
        common = self.recipe.model_dump()
        return {(r.labels, c.label): _recipe(common, r, c) for r in self.rows for c in self.columns}


def merged(under: Mapping[str, Any], over: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`over` laid over `under`, table by table; a step of another name takes the place of the one that is there.

    Raises:
        RecipeError: options without a step's name lie over a list of steps; names the key, under `path`.
    """
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            renamed = "name" in below and value.get("name", below["name"]) != below["name"]
            result[key] = dict(value) if renamed else merged(below, value, f"{path}{key}.")
        elif isinstance(value, Mapping) and isinstance(below, list) and "name" not in value:
            came = ", ".join(value)
            raise RecipeError(f"{path}{key}: {came} cannot be laid over a list; give the whole list, or a step's name")
        else:
            result[key] = value
    return result


def where(place: Place) -> str:
    """How messages call a cell."""
    labels, column = place
    return " ".join(labels) + (f" at {column}" if column else "")


def _recipe(common: Mapping[str, Any], row: Row, column: Column) -> Recipe:
    try:
        return Recipe(**merged(merged(common, row.changes), column.changes))
    except RecipeError as error:
        raise RecipeError(f"{row.origin}{where((row.labels, column.label))}: {error}") from None


def _methods(recipe: Recipe) -> list[tuple[BoundMethod, str]]:
    """The methods that a recipe uses, with their patterns."""
    rules = [(recipe.bound(rule), rule.pattern or recipe.pattern) for rule in recipe.targets if not rule.skip]
    return [(recipe.bound(), recipe.pattern), *rules]


def _is_seeded(recipe: Recipe) -> bool:
    """Whether a seed makes a difference: a step draws random numbers, or windows are drawn with it."""
    ready = recipe.calibration.seed is not None or str(recipe.calibration.text).lower().endswith(".npy")
    return any(
        (bound.statistics and not ready) or any("generator" in step.data for step in bound.steps.values())
        for bound, _ in _methods(recipe)
    )
