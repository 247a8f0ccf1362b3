"""The papers' tables and figures as data: what they measure, on which models, and the printed numbers."""

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
NumberKey = tuple[str, Labels, str]  # model key, row labels, column

_PAPERS: Final = Path(str(files("eggs_ptp.research.reproduction") / "papers"))


@dataclass(frozen=True)
class Paper:
    """A paper.

    Attributes:
        title: Its title.
        arxiv: Its arXiv identifier.
        source: The text from which the numbers were taken.
    """

    title: str
    arxiv: str
    source: str


@dataclass(frozen=True)
class PaperModel:
    """A model of the papers.

    Attributes:
        key: Its key in models.toml.
        title: How the papers call it.
        hub: Its name on the hub.
        names: Lower-case last parts of folder and hub names that identify it among models of the same shape.
        config: Entries of its config.json that identify its shape.
    """

    key: str
    title: str
    hub: str
    names: Sequence[str]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """A paper's statement that a method lowers the perplexity of another one, as a mean over its models.

    Attributes:
        row: Labels of the better row.
        than: Labels of the row it is compared with.
        lower_percent: By how many per cent, as printed.
    """

    row: Labels
    than: Labels
    lower_percent: str


@dataclass(frozen=True)
class Published:
    """A table or figure of a paper.

    Attributes:
        name: Its name here, such as `table-2`.
        paper: The paper.
        place: Its number in the paper, such as `Table 2`.
        title: What it shows.
        measure: What its numbers are.
        grid: The comparison that reproduces it; empty if there is none.
        models: The models of its columns.
        columns: Column labels: those of the grid, tasks if accuracy is measured, or one empty label if the paper has
            one column per model.
        notes: Remarks.
        claims: Statements of the paper's text.
        numbers: As printed. The row labels of the dense model are empty.
        deviations: Standard deviations, as printed.
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
    numbers: Mapping[NumberKey, str]
    deviations: Mapping[NumberKey, str]

    @property
    def source(self) -> str:
        """The paper and the place in it: `Symmetric Pruning, arXiv:2501.18980, Table 2`."""
        return f"{self.paper.title}, arXiv:{self.paper.arxiv}, {self.place}"

    @property
    def recipe(self) -> Path:
        """What `read_comparison` reads: a file of this package, or the name of a table that the package ships."""
        own = _PAPERS / "grids" / f"{self.grid}.toml"
        return own if own.exists() else Path(self.grid)


def published() -> Mapping[str, Published]:
    """Return all tables and figures by name: those of EGGS-PTP first, then in numerical order."""
    items = [_read(path) for path in (_PAPERS / "items").glob("*.toml")]
    items.sort(key=lambda item: (item.paper.title, _sort_key(item.name)))
    return {item.name: item for item in items}


def find_published(name: str) -> Published:
    """Return the table or figure with this name.

    Raises:
        RecipeError: There is none; names the nearest.
    """
    known = published()
    if name not in known:
        raise RecipeError(f"no table or figure is named {name!r}{nearest(name, known)}; expected {', '.join(known)}")
    return known[name]


def known_model(name: str, config: Mapping[str, Any]) -> tuple[PaperModel, bool] | None:
    """Identify a model of the papers.

    Args:
        name: Folder or hub name of a model.
        config: Its config.json.

    Returns:
        The paper's model with this shape, and whether the name agrees too, as other models may have the same shape.
        None if no model has this shape.
    """
    last_part = Path(name).name.lower()
    for model in paper_models().values():
        if all(config.get(key) == value for key, value in model.config.items()):
            return model, last_part in model.names
    return None


@cache
def paper_models() -> Mapping[str, PaperModel]:
    """Return all models of the papers by key."""
    return {key: PaperModel(key, **table) for key, table in _read_toml(_PAPERS / "models.toml").items()}


def _read(path: Path) -> Published:
    table = _read_toml(path)
    columns = tuple(table.get("columns", ("",)))
    models = tuple(paper_models()[key] for key in table["models"])
    numbers: dict[NumberKey, str] = {}
    deviations: dict[NumberKey, str] = {}
    cells = [(model.key, column) for model in models for column in columns]
    dense = [{"label": [], "numbers": table["dense"]}] if "dense" in table else []
    for row in [*dense, *table.get("rows", ())]:
        for key, values in (("numbers", numbers), ("sd", deviations)):
            for (model, column), value in zip(cells, row[key], strict=True) if key in row else ():
                values[model, tuple(row["label"]), column] = str(value)
    return Published(
        name=path.stem,
        paper=Paper(**_read_toml(_PAPERS / "papers.toml")[table["paper"]]),
        place=table["place"],
        title=table["title"],
        measure=table["measure"],
        grid=table["grid"],
        models=models,
        columns=columns,
        notes=tuple(table.get("notes", ())),
        claims=tuple(
            Claim(tuple(claim["row"]), tuple(claim["than"]), claim["lower_percent"])
            for claim in table.get("claims", ())
        ),
        numbers={key: text for key, text in numbers.items() if text},
        deviations=deviations,
    )


def _read_toml(path: Path) -> dict[str, Any]:
    """Read a file and keep the digits of its numbers: a table prints 7.60, not 7.6."""
    return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=str)


def _sort_key(name: str) -> tuple[str, int, str]:
    head, _, number = name.rpartition("-")
    return (head, int(number), "") if number.isdigit() else (name, 0, "")
