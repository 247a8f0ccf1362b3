"""Comparison files: rows, columns, seeds and evaluation next to a recipe's keys; the papers' tables are such files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eggs_ptp.comparison.grid import Column, ComparisonGrid, Labels, Row
from eggs_ptp.comparison.search import sample_rows
from eggs_ptp.core.pattern import AnyPattern, parse_pattern
from eggs_ptp.errors import MethodError, PatternError, RecipeError
from eggs_ptp.evaluation.begin_rule import BeginRule
from eggs_ptp.evaluation.perplexity import Protocol
from eggs_ptp.method.aliases import with_current_names
from eggs_ptp.method.catalogue import find_method
from eggs_ptp.method.nearest import nearest
from eggs_ptp.recipe.problem import problems
from eggs_ptp.recipe.read import read_recipe, read_table
from eggs_ptp.recipe.recipe import Recipe

_Seeds = Annotated[int, Field(ge=1)]
_NOT_SHIPPED = {
    "table-6": "its numbers are accuracies in zero-shot tasks, and comparisons measure perplexity; see eggs reproduce"
}


class _Entry(BaseModel):
    """A row or a column: its own keys, and as extra keys its changes to the recipe."""

    model_config = ConfigDict(extra="allow", strict=True)

    label: str | list[str] = []
    seeds: _Seeds | None = None

    @property
    def labels(self) -> Labels:
        """The labels as a tuple."""
        return (self.label,) if isinstance(self.label, str) else tuple(self.label)

    @property
    def changes(self) -> dict[str, Any]:
        """The changes to the recipe; a step may be given by its name alone, `score = "ria"`."""
        changes = dict(self.model_extra or {})
        steps = changes.get("steps")
        if isinstance(steps, Mapping):
            changes["steps"] = {slot: {"name": step} if isinstance(step, str) else step for slot, step in steps.items()}
        return changes


class _Search(_Entry):
    """Rows that are sampled from combinations of choices, see `search.sample_rows`."""

    draws: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)] = 0
    choices: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]


class _Evaluation(BaseModel):
    """Arguments of the evaluation; None leaves the default of `api.evaluate`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = None
    text_field: str | None = None
    protocol: Protocol | None = None
    seqlen: Annotated[int, Field(ge=2)] | None = None
    max_windows: Annotated[int, Field(ge=1)] | None = None
    begin: BeginRule | None = None


class _File(BaseModel):
    """The keys of a comparison file that are not those of a recipe."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str = ""
    heads: Annotated[list[str], Field(min_length=1)] = ["method"]
    patterns: Annotated[list[str | float], Field(min_length=1)] | None = None
    columns: Annotated[list[_Entry], Field(min_length=1)] | None = None
    seeds: _Seeds = 3
    rows: list[_Entry] = []
    search: list[_Search] = []
    evaluation: _Evaluation = _Evaluation()


def shipped_tables() -> tuple[str, ...]:
    """Return the names of the comparison files that come with the package, such as `table-2`."""
    folder = files("eggs_ptp.comparison") / "tables"
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")))


def read_comparison(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    methods: Sequence[str] | None = None,
    patterns: Sequence[str] | None = None,
    seeds: int | None = None,
    **flags: Any,
) -> ComparisonGrid:
    """Return the grid of a comparison file, with changes.

    The recipe of a cell is the common recipe, changed by its row and then by its column, key by key. The shipped
    tables cut C4 into windows as the papers' code does, inside long documents. A user's calibration text may have no
    long documents, so with one its windows are packed, as they are by default, unless `calibration.sampling` is
    overridden.

    Args:
        file: A file, a recipe, or the name of a shipped table; None for the default recipe.
        overrides: `KEY=VALUE` changes to the common recipe, see `recipe.read.read_recipe`.
        methods: Methods that replace the rows of the file.
        patterns: Patterns that replace the columns of the file.
        seeds: Number of seeds that replaces all those of the file.
        **flags: Changes to the common recipe, see `recipe.read.read_recipe`.

    Raises:
        RecipeError: A file or a value is not valid (file and line), or labels do not fit.
        MethodError: One of `methods` is unknown.
        PatternError: One of `patterns` is not a pattern.
    """
    path, is_shipped = _find(file) if file else (None, False)
    table = read_table(path) if path else {}
    contents = _checked(path, {key: table[key] for key in table if key in _File.model_fields})
    _check_keys(path, table)
    if methods is not None:
        names = [find_method(name).name for name in methods]
        rows = [Row((name,), {"method": name}, origin="--methods: ") for name in names]
    else:
        rows = list(_rows(path, contents))
    if is_shipped and flags.get("calibration"):
        flags = {"sampling": "packed", **flags}
    if rows and "method" not in table and all("method" in row.changes for row in rows):
        flags["method"] = rows[0].changes["method"]  # common options need not fit a default that no row uses
    recipe = read_recipe(path, overrides, foreign=_File.model_fields, **flags)
    rows = rows or [Row((recipe.method,), {})]
    if patterns is not None and (contents.columns or any("pattern" in row.changes for row in rows)):
        raise RecipeError(f"--patterns: {path} already sets patterns in its rows or columns; leave out --patterns")
    if seeds is not None:
        rows = [Row(row.labels, row.changes, None, row.origin) for row in rows]
    return ComparisonGrid(
        recipe=recipe,
        rows=tuple(rows),
        columns=tuple(_columns(path, contents, patterns, rows, recipe)),
        seeds=seeds or contents.seeds,
        heads=("method",) if methods is not None else tuple(contents.heads),
        title=contents.title,
        evaluation=contents.evaluation.model_dump(exclude_none=True),
    )


def _rows(path: Path | None, contents: _File) -> Iterator[Row]:
    """Yield the rows of a file, those of its searches last."""
    for index, entry in enumerate(contents.rows):
        origin = _origin(path, "rows", index)
        _refuse(entry, "seed", f"{origin}seed: a row has no seed; give seeds = N, the number of seeds")
        labels = entry.labels
        if not labels:
            try:
                labels = (find_method(str(entry.changes["method"])).name,)
            except KeyError:
                raise RecipeError(f"{origin}a row needs a label or a method") from None
            except MethodError as error:
                raise RecipeError(f"{origin}method: {error}") from None
        yield Row(labels, entry.changes, entry.seeds, origin)
    for index, search in enumerate(contents.search):
        yield from sample_rows(
            search.labels,
            search.changes,
            search.choices,
            draws=search.draws,
            seed=search.seed,
            seeds=search.seeds,
            origin=_origin(path, "search", index),
        )


def _columns(
    path: Path | None, contents: _File, patterns: Sequence[str] | None, rows: Sequence[Row], recipe: Recipe
) -> Iterator[Column]:
    """Yield the columns: those of the file, or one per pattern."""
    if contents.columns and contents.patterns:
        raise RecipeError(f"{path}: give patterns or columns, not both: patterns are columns that change the pattern")
    for index, entry in enumerate(contents.columns or []):
        origin = _origin(path, "columns", index)
        for key in ("seed", "seeds"):
            _refuse(entry, key, f"{origin}{key}: a column has no seeds; give seeds = N at the top or in a row")
        if isinstance(entry.label, list) and entry.label:
            raise RecipeError(f"{origin}label: a column has one label, got {entry.label}")
        yield Column("".join(entry.labels), entry.changes)
    if contents.columns:
        return
    if patterns is None and contents.patterns is None and any("pattern" in row.changes for row in rows):
        yield Column("", {})
        return
    for pattern in patterns or contents.patterns or [recipe.pattern]:
        try:
            parsed = pattern if isinstance(pattern, AnyPattern) else parse_pattern(str(pattern))
        except PatternError as error:
            raise PatternError(f"{'--patterns' if patterns else f'{path}: patterns'}: {error}") from None
        yield Column(str(parsed), {"pattern": parsed})


def _refuse(entry: _Entry, key: str, message: str) -> None:
    """Refuse a key that an entry must not have."""
    if key in entry.model_fields_set:
        raise RecipeError(message)


def _find(file: Path) -> tuple[Path, bool]:
    """Return the path of a file or a shipped table, and whether it is a shipped one."""
    if file.exists() or file.suffix:
        return file, False
    names = shipped_tables()
    if str(file) in names:
        return Path(str(files("eggs_ptp.comparison") / "tables" / f"{file}.toml")), True
    if reason := _NOT_SHIPPED.get(str(file)):
        raise RecipeError(f"{file}: {reason}; table-5 compares the same methods; shipped: {', '.join(names)}")
    raise RecipeError(
        f"{file}: no such file, and no shipped table{nearest(str(file), names)}; shipped: {', '.join(names)}"
    )


def _checked(path: Path | None, table: dict[str, Any]) -> _File:
    """Return the checked keys of a comparison file."""
    try:
        return _File(**table)
    except ValidationError as error:
        problem = problems(error, _File)[0]
        key, _, rest = problem.path.partition("[")
        index, _, inner = rest.partition("]")
        origin = f"{_origin(path, key, int(index))}{inner.lstrip('.')}: " if index else f"{path}: {key}: "
        raise RecipeError(f"{origin}{problem.reason}") from None


def _check_keys(path: Path | None, table: Mapping[str, Any]) -> None:
    """Refuse unknown keys that resemble a key of comparison files; other ones are refused by the recipe."""
    current_table = with_current_names(table, quiet=True)
    for key in current_table.keys() - _File.model_fields.keys() - Recipe.model_fields.keys():
        if hint := nearest(key, _File.model_fields):
            raise RecipeError(f"{path}: unknown key {key!r}{hint}")


def _origin(path: Path | None, key: str, index: int) -> str:
    """Return where an entry of a list of tables is defined: `rows.toml, line 12, rows[3]: `."""
    text = path.read_text(encoding="utf-8-sig") if path else ""
    lines = [number for number, line in enumerate(text.split("\n"), 1) if re.match(rf"\s*\[\[\s*{key}\s*\]\]", line)]
    line = f", line {lines[index]}" if index < len(lines) else ""
    return f"{path}{line}, {key}[{index}]: "
