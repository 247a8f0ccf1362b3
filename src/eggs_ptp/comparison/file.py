"""Comparison files: rows, columns, seeds and evaluation beside a recipe's keys. The papers' tables ship as such."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eggs_ptp.comparison.grid import Column, Grid, Labels, Row
from eggs_ptp.comparison.search import drawn_rows
from eggs_ptp.core.pattern import parse_pattern
from eggs_ptp.errors import MethodError, PatternError, RecipeError
from eggs_ptp.evaluation.perplexity import Protocol
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
    """Of a row or column: the keys that are not changes to the recipe."""

    model_config = ConfigDict(extra="allow", strict=True)

    label: str | list[str] = []
    seeds: _Seeds | None = None

    @property
    def labels(self) -> Labels:
        return (self.label,) if isinstance(self.label, str) else tuple(self.label)

    @property
    def changes(self) -> dict[str, Any]:
        changes = dict(self.model_extra or {})
        if isinstance(steps := changes.get("steps"), Mapping):  # score = "ria"
            named = {slot: {"name": step} if isinstance(step, str) else step for slot, step in steps.items()}
            changes["steps"] = named
        return changes


class _Search(_Entry):
    draws: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)] = 0
    choices: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]


class _Evaluation(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = None
    text_field: str | None = None
    protocol: Protocol | None = None
    seqlen: Annotated[int, Field(ge=2)] | None = None
    max_windows: Annotated[int, Field(ge=1)] | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    title: str = ""
    heads: Annotated[list[str], Field(min_length=1)] = ["method"]
    patterns: Annotated[list[str | float], Field(min_length=1)] | None = None
    columns: Annotated[list[_Entry], Field(min_length=1)] | None = None
    seeds: _Seeds = 3
    rows: list[_Entry] = []
    search: list[_Search] = []
    evaluation: _Evaluation = _Evaluation()


def shipped() -> tuple[str, ...]:
    """Names of the comparisons that come with the package, such as `table-2`."""
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
) -> Grid:
    """The grid of a file or a shipped table, changed by arguments (None = not given) and `KEY=VALUE` overrides.

    `methods` take the place of the rows, `patterns` of the columns, `seeds` of all numbers of seeds; `flags` and
    `overrides` change the common recipe (see `recipe.read.read_recipe`). Changes of columns lie over those of rows,
    these over the common recipe, tables key by key.

    Shipped tables cut C4 into windows as the papers' code does, inside long documents. A calibration text of one's own
    may have none, so it is packed, as always, unless `calibration.sampling` is overridden.

    Raises:
        RecipeError: a file or a value that cannot be understood (file and line), labels that do not fit.
        MethodError: an unknown method in `methods`.
        PatternError: a pattern in `patterns` that is none.
    """
    path, own = _find(file) if file else (None, True)
    table = read_table(path) if path else {}
    given = _checked(path, {key: table[key] for key in table if key in _File.model_fields})
    _check_keys(path, table)
    if methods is not None:
        names = [find_method(name).name for name in methods]
        rows = [Row((name,), {"method": name}, origin="--methods: ") for name in names]
    else:
        rows = list(_rows(path, given))
    if not own and flags.get("calibration"):
        flags = {"sampling": "packed", **flags}
    if rows and "method" not in table and all("method" in row.changes for row in rows):
        flags["method"] = rows[0].changes["method"]  # common options need not fit a default that no row uses
    recipe = read_recipe(path, overrides, foreign=_File.model_fields, **flags)
    rows = rows or [Row((recipe.method,), {})]
    if patterns is not None and (given.columns or any("pattern" in row.changes for row in rows)):
        raise RecipeError(f"--patterns: the rows or columns of {path} have patterns, or columns, of their own")
    if seeds is not None:
        rows = [Row(row.labels, row.changes, None, row.origin) for row in rows]
    return Grid(
        recipe,
        tuple(rows),
        tuple(_columns(path, given, patterns, rows, recipe)),
        seeds or given.seeds,
        ("method",) if methods is not None else tuple(given.heads),
        given.title,
        given.evaluation.model_dump(exclude_none=True),
    )


def _rows(path: Path | None, given: _File) -> Iterator[Row]:
    for place, entry in enumerate(given.rows):
        origin = _origin(path, "rows", place)
        _refuse(entry, "seed", f"{origin}seed: seeds are the whole comparison's; give seeds = N, their number")
        labels = entry.labels
        if not labels:
            try:
                labels = (find_method(str(entry.changes["method"])).name,)
            except KeyError:
                raise RecipeError(f"{origin}a row needs a label or a method") from None
            except MethodError as error:
                raise RecipeError(f"{origin}method: {error}") from None
        yield Row(labels, entry.changes, entry.seeds, origin)
    for place, search in enumerate(given.search):
        yield from drawn_rows(
            search.labels,
            search.changes,
            search.choices,
            draws=search.draws,
            seed=search.seed,
            seeds=search.seeds,
            origin=_origin(path, "search", place),
        )


def _columns(
    path: Path | None, given: _File, patterns: Sequence[str] | None, rows: Sequence[Row], recipe: Recipe
) -> Iterator[Column]:
    if given.columns and given.patterns:
        raise RecipeError(f"{path}: give patterns or columns, not both: patterns are columns that change the pattern")
    for place, entry in enumerate(given.columns or []):
        origin = _origin(path, "columns", place)
        for key in ("seed", "seeds"):
            _refuse(entry, key, f"{origin}{key}: a column has no seeds; give seeds = N at the top or in a row")
        if isinstance(entry.label, list) and entry.label:
            raise RecipeError(f"{origin}label: a column has one label, came {entry.label}")
        yield Column("".join(entry.labels), entry.changes)
    if given.columns:
        return
    if patterns is None and given.patterns is None and any("pattern" in row.changes for row in rows):
        yield Column("", {})
        return
    for pattern in patterns or given.patterns or [recipe.pattern]:
        try:
            text = str(parse_pattern(str(pattern)))
        except PatternError as error:
            raise PatternError(f"{'--patterns' if patterns else f'{path}: patterns'}: {error}") from None
        yield Column(text, {"pattern": text})


def _refuse(entry: _Entry, key: str, message: str) -> None:
    if key in entry.model_fields_set:
        raise RecipeError(message)


def _find(file: Path) -> tuple[Path, bool]:
    """The path, and whether it is the user's own."""
    if file.exists() or file.suffix:
        return file, True
    if str(file) in shipped():
        return Path(str(files("eggs_ptp.comparison") / "tables" / f"{file}.toml")), False
    if why := _NOT_SHIPPED.get(str(file)):
        raise RecipeError(f"{file}: {why}; table-5 compares the same methods; shipped: {', '.join(shipped())}")
    raise RecipeError(
        f"{file}: no such file, and no shipped table{nearest(str(file), shipped())}; shipped: {', '.join(shipped())}"
    )


def _checked(path: Path | None, table: dict[str, Any]) -> _File:
    try:
        return _File(**table)
    except ValidationError as error:
        problem = problems(error, _File)[0]
        key, _, place = problem.path.partition("[")
        place, _, inner = place.partition("]")
        located = f"{_origin(path, key, int(place))}{inner.lstrip('.')}: " if place else f"{path}: {key}: "
        raise RecipeError(f"{located}{problem.reason}") from None


def _check_keys(path: Path | None, table: Mapping[str, Any]) -> None:
    for key in table.keys() - _File.model_fields.keys() - Recipe.model_fields.keys():
        if hint := nearest(key, _File.model_fields):
            raise RecipeError(f"{path}: unknown key {key!r}{hint}")


def _origin(path: Path | None, key: str, place: int) -> str:
    """Where an entry of a list of tables stands: `rows.toml, line 12, rows[3]: `."""
    text = path.read_text(encoding="utf-8-sig") if path else ""
    lines = [number for number, line in enumerate(text.split("\n"), 1) if re.match(rf"\s*\[\[\s*{key}\s*\]\]", line)]
    return f"{path}{f', line {lines[place]}' if place < len(lines) else ''}, {key}[{place}]: "
