"""Comparison files: TOML with rows, patterns and seeds beside the keys of a recipe. The papers' tables ship as such."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eggs_ptp.comparison.grid import Grid, Row
from eggs_ptp.core.pattern import parse_pattern
from eggs_ptp.errors import RecipeError
from eggs_ptp.method.catalogue import DEFAULT_METHOD, find_method
from eggs_ptp.method.nearest import nearest
from eggs_ptp.recipe.read import read_recipe, read_table

_KEYS = ("title", "patterns", "seeds", "rows")
_CHANGES = ("method", "steps", "share", "targets", "calibration")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: str = ""
    patterns: Annotated[list[str | float], Field(min_length=1)] = ["2:4"]
    seeds: Annotated[int, Field(ge=1)] = 3
    rows: list[dict[str, Any]] = []


def shipped() -> tuple[str, ...]:
    """Names of the comparisons that come with the package, such as `table-2`."""
    folder = files("eggs_ptp.comparison") / "tables"
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")))


def read_comparison(
    file: Path | None,
    overrides: Sequence[str] = (),
    *,
    methods: Sequence[str] | None = None,
    patterns: Sequence[str] | None = None,
    seeds: int | None = None,
    **flags: Any,
) -> Grid:
    """The grid of a file or a shipped table, changed by arguments (None = not given) and `KEY=VALUE` overrides.

    A row has a `method`, perhaps a `label`, and may change `steps`, `share`, `targets` and `calibration`.

    Raises:
        RecipeError: a file or a value that cannot be understood.
        MethodError: an unknown method.
        PatternError: a pattern that is none.
    """
    path = _find(file) if file else None
    table = {key: value for key, value in (read_table(path) if path else {}).items() if key in _KEYS}
    try:
        given = _File(**table)
    except ValidationError as error:
        problem = error.errors()[0]
        raise RecipeError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    recipe = read_recipe(path, overrides, foreign=_KEYS, **flags)
    if methods is not None:
        rows = tuple(Row(find_method(name).name, {"method": name}) for name in methods)
    else:
        rows = tuple(_row(row, place, path) for place, row in enumerate(given.rows))
    wanted = [str(pattern) for pattern in patterns or given.patterns]
    return Grid(
        recipe,
        rows or (Row(DEFAULT_METHOD, {"method": DEFAULT_METHOD}),),
        tuple(str(parse_pattern(pattern)) for pattern in wanted),
        tuple(range(seeds or given.seeds)),
        given.title,
    )


def _row(row: dict[str, Any], place: int, path: Path | None) -> Row:
    changes = dict(row)
    label = str(changes.pop("label", changes.get("method", "")))
    for key in changes:
        if key not in _CHANGES:
            raise RecipeError(f"{path}: rows[{place}].{key}: unknown key{nearest(key, _CHANGES)}")
    if "method" not in changes:
        raise RecipeError(f"{path}: rows[{place}]: a row needs a method")
    find_method(str(changes["method"]))
    return Row(label, changes)


def _find(file: Path) -> Path:
    if file.exists() or file.suffix:
        return file
    if str(file) in shipped():
        return Path(str(files("eggs_ptp.comparison") / "tables" / f"{file}.toml"))
    raise RecipeError(
        f"{file}: no such file, and no shipped table{nearest(str(file), shipped())}; shipped: {', '.join(shipped())}"
    )
