"""ComparisonGrid: the runs of a comparison, rows x columns x seeds."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from eggs_ptp.core.pattern import AnyPattern
from eggs_ptp.errors import PatternError, RecipeError
from eggs_ptp.method.aliases import with_current_names
from eggs_ptp.method.method import BoundMethod
from eggs_ptp.recipe.recipe import Recipe

Labels = tuple[str, ...]
CellKey = tuple[Labels, str]  # a row's labels and a column's label


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        labels: Texts in the first columns of the table, one under each of the grid's heads.
        changes: Changes to the common recipe.
        seeds: Number of seeds, if it differs from that of the grid.
        origin: Prefix of error messages that says where the row is defined, such as "rows.toml, line 12, rows[3]: ".
    """

    labels: Labels
    changes: Mapping[str, Any]
    seeds: int | None = None
    origin: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        label: Its head; empty for the model's name.
        changes: Changes to the recipe of every row.
    """

    label: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run: its row and column, and its recipe, with its seed."""

    key: CellKey
    recipe: Recipe

    def __str__(self) -> str:
        return f"{cell_name(self.key)}, seed {self.recipe.seed}"


@dataclass(frozen=True)
class ComparisonGrid:
    """Rows x columns x seeds of recipes that differ from a common one.

    Attributes:
        recipe: The common recipe; its seed is the first of the seeds.
        rows: The rows.
        columns: The columns.
        seeds: Number of seeds of a cell.
        heads: Heads of the columns with the rows' labels.
        title: Title of the table.
        evaluation: Arguments of `api.evaluate` that differ from its defaults.

    Raises:
        RecipeError: Labels that occur twice, or not as many as there are heads; changes that give no valid recipe; no
            run.
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
                    f"{row.origin}label: expected {len(self.heads)}, one under each of the heads "
                    f"{', '.join(self.heads)}; got {', '.join(row.labels) or 'none'}"
                )
        _check_unique("rows", [row.labels for row in self.rows])
        _check_unique("columns", [(column.label,) for column in self.columns])
        if not self.rows or not self.columns:
            raise RecipeError("a comparison needs a row and a column")
        if len(self.undefined) == len(self._recipes):
            raise RecipeError(f"nothing to compare: {next(iter(self.undefined.values()))}")

    def cells(self) -> Iterator[Cell]:
        """Yield every run that is defined, seed after seed; a method that no seed can change has one run."""
        for index in range(max(self._seeds_of(row) for row in self.rows)):
            for row in self.rows:
                for column in self.columns:
                    key = (row.labels, column.label)
                    recipe = self._recipes[key]
                    seeds = self._seeds_of(row) if _depends_on_seed(recipe) else 1
                    if index < seeds and key not in self.undefined:
                        yield Cell(key, recipe.model_copy(update={"seed": recipe.seed + index}))

    @cached_property
    def undefined(self) -> dict[CellKey, str]:
        """The cells whose method is not defined for their pattern, with the reason."""
        reasons = {}
        for key, recipe in self._recipes.items():
            try:
                for method, pattern in _methods(recipe):
                    method.check_pattern(pattern, cell_name(key))
            except PatternError as error:
                reasons[key] = str(error)
        return reasons

    def _seeds_of(self, row: Row) -> int:
        """Return the number of seeds of a row."""
        return self.seeds if row.seeds is None else row.seeds

    @cached_property
    def _recipes(self) -> dict[CellKey, Recipe]:
        """The recipe of each cell, with the first seed."""
        common = self.recipe.arguments()
        return {
            (row.labels, column.label): _cell_recipe(common, row, column)
            for row in self.rows
            for column in self.columns
        }


def merge_tables(base: Mapping[str, Any], changes: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return a table with changes, merged key by key and table by table.

    A step with another name replaces the step of the base, with its options.

    Args:
        base: The table; it is not modified.
        changes: The changes.
        path: Key path of the table, for error messages, with a dot at its end.

    Raises:
        RecipeError: Options without a step's name are given for a list of steps; names the key.
    """
    merged = dict(base)
    for key, value in changes.items():
        base_value = merged.get(key)
        if isinstance(value, Mapping) and isinstance(base_value, Mapping):
            renamed = "name" in base_value and value.get("name", base_value["name"]) != base_value["name"]
            merged[key] = dict(value) if renamed else merge_tables(base_value, value, f"{path}{key}.")
        elif isinstance(value, Mapping) and isinstance(base_value, list) and "name" not in value:
            options = ", ".join(value)
            raise RecipeError(
                f"{path}{key}: {options} cannot be changed in a list; give the whole list, or a step's name"
            )
        else:
            merged[key] = value
    return merged


def cell_name(key: CellKey) -> str:
    """Return the name of a cell in messages, such as "wanda at 2:4"."""
    labels, column = key
    return " ".join(labels) + (f" at {column}" if column else "")


def _check_unique(kind: str, all_labels: list[Labels]) -> None:
    """Refuse rows or columns with the same labels."""
    repeated = [labels for labels, count in Counter(all_labels).items() if count > 1]
    if repeated:
        raise RecipeError(f"{kind}: two are labelled {' '.join(repeated[0])!r}; give each its own label")


def _cell_recipe(common: Mapping[str, Any], row: Row, column: Column) -> Recipe:
    """Return the common recipe with the changes of a row, and then those of a column."""
    try:
        with_row = merge_tables(common, with_current_names(row.changes))
        return Recipe(**merge_tables(with_row, with_current_names(column.changes)))
    except RecipeError as error:
        raise RecipeError(f"{row.origin}{cell_name((row.labels, column.label))}: {error}") from None


def _methods(recipe: Recipe) -> list[tuple[BoundMethod, AnyPattern]]:
    """Return the methods that a recipe uses, with their patterns."""
    rules = [(recipe.bound(rule), rule.pattern or recipe.pattern) for rule in recipe.targets if not rule.skip]
    return [(recipe.bound(), recipe.pattern), *rules]


def _depends_on_seed(recipe: Recipe) -> bool:
    """Return whether the seed changes the result: a step draws random numbers, or calibration windows are drawn."""
    fixed_windows = recipe.calibration.seed is not None or str(recipe.calibration.text).lower().endswith(".npy")
    for method, _ in _methods(recipe):
        if method.statistics and not fixed_windows:
            return True
        if any("generator" in step.data for step in method.steps.values()):
            return True
    return False
