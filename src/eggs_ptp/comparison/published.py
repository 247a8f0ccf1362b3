"""The papers' tables and figures as data: what each measures, on which models, and the numbers that were read there."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from eggs_ptp.comparison.grid import Labels
from eggs_ptp.errors import RecipeError
from eggs_ptp.method.nearest import nearest

Measure = Literal["perplexity", "accuracy", "speed", "picture"]
_PAPERS: Final = Path(str(files("eggs_ptp.comparison") / "papers"))


@dataclass(frozen=True)
class Paper:
    """A paper, and where its numbers were read."""

    title: str
    arxiv: str
    source: str


@dataclass(frozen=True)
class PaperModel:
    """A model of the papers: told by what its config says; `names` are surely it and not another of its shape."""

    key: str
    title: str
    hub: str
    names: Sequence[str]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """What a paper says of one row against another: perplexity lower by so many per cent, mean over its models."""

    row: Labels
    than: Labels
    lower_percent: str


@dataclass(frozen=True)
class Published:
    """A table or figure. Numbers are as printed, by (model, row, column); empty labels are those of the dense model.

    `columns` are the grid's, tasks where accuracy is measured, or one without a name, the model's own.
    """

    name: str
    paper: Paper
    place: str
    title: str
    measure: Measure
    grid: str
    models: tuple[PaperModel, ...]
    columns: Labels
    notes: tuple[str, ...]
    claims: tuple[Claim, ...]
    numbers: Mapping[tuple[str, Labels, str], str]
    deviations: Mapping[tuple[str, Labels, str], str]

    @property
    def source(self) -> str:
        """Where in which paper: `Symmetric Pruning, arXiv:2501.18980, Table 2`."""
        return f"{self.paper.title}, arXiv:{self.paper.arxiv}, {self.place}"

    @property
    def recipe(self) -> Path:
        """What `file.read_comparison` reads: a shipped table, or a file beside these numbers."""
        own = _PAPERS / "grids" / f"{self.grid}.toml"
        return own if own.exists() else Path(self.grid)


def published() -> Mapping[str, Published]:
    """All of them, by name: EGGS-PTP's first, then in the order of their numbers."""
    found = [_read(path) for path in (_PAPERS / "items").glob("*.toml")]
    return {each.name: each for each in sorted(found, key=lambda each: (each.paper.title, _order(each.name)))}


def find_published(name: str) -> Published:
    """The table or figure of that name.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    known = published()
    if name not in known:
        raise RecipeError(f"no table or figure is named {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return known[name]


def known_model(name: str, config: Mapping[str, Any]) -> tuple[PaperModel, bool] | None:
    """The model of the papers that has this config, and whether it has its name too; others may have its shape."""
    last = Path(name).name.lower()
    same = [each for each in _models().values() if all(config.get(key) == value for key, value in each.config.items())]
    return next(((each, last in each.names) for each in same), None)


@cache
def _models() -> Mapping[str, PaperModel]:
    return {key: PaperModel(key, **table) for key, table in _table(_PAPERS / "models.toml").items()}


def _read(path: Path) -> Published:
    table = _table(path)
    columns, models = tuple(table.get("columns", ("",))), tuple(_models()[key] for key in table["models"])
    numbers: dict[tuple[str, Labels, str], str] = {}
    deviations: dict[tuple[str, Labels, str], str] = {}
    places = [(model.key, column) for model in models for column in columns]
    dense = [{"label": [], "numbers": table["dense"]}] if "dense" in table else []
    for row in [*dense, *table.get("rows", ())]:
        for key, found in (("numbers", numbers), ("sd", deviations)):
            for (model, column), value in zip(places, row[key], strict=True) if key in row else ():
                found[model, tuple(row["label"]), column] = str(value)
    claims = tuple(
        Claim(tuple(each["row"]), tuple(each["than"]), each["lower_percent"]) for each in table.get("claims", ())
    )
    return Published(
        path.stem,
        Paper(**_table(_PAPERS / "papers.toml")[table["paper"]]),
        table["place"],
        table["title"],
        table["measure"],
        table["grid"],
        models,
        columns,
        tuple(table.get("notes", ())),
        claims,
        {place: text for place, text in numbers.items() if text},
        deviations,
    )


def _table(path: Path) -> dict[str, Any]:
    """Floats stay the text that they are: a table prints 7.60, not 7.6."""
    return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=str)


def _order(name: str) -> tuple[str, int, str]:
    head, _, number = name.rpartition("-")
    return (head, int(number), "") if number.isdigit() else (name, 0, "")
