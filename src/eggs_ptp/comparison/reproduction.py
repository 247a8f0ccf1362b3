"""A table of the papers run again on any model, and the paper's numbers beside ours where the model is the same."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from eggs_ptp import api
from eggs_ptp.comparison.file import read_comparison
from eggs_ptp.comparison.grid import Grid, Labels
from eggs_ptp.comparison.published import PaperModel, Published, known_model
from eggs_ptp.comparison.result import Comparison
from eggs_ptp.comparison.run import Progress, Tasks, compare
from eggs_ptp.demo.builtin import DEMO
from eggs_ptp.errors import CalibrationError, RecipeError
from eggs_ptp.evaluation.harness import LOCAL, TASKS
from eggs_ptp.models.folder import read_config

_WIKITEXT = ("wiki.test.raw", "wiki.test.tokens")
_KEPT = ("seed", "perplexity", "tasks", "density", "output_error", "B", "seconds", "calibration", "recipe_sha256")
_SEQLEN, _NSAMPLES = 2048, 128  # the papers' protocol, in evaluation and calibration


class Number(NamedTuple):
    """A cell: ours (None where it did not run), its standard deviation over seeds, and the paper's as printed."""

    row: Labels
    column: str
    ours: float | None
    deviation: float | None
    seeds: int
    paper: str | None
    paper_deviation: str | None


@dataclass(frozen=True)
class Reproduction:
    """A finished table: `model` is that of the papers with the same config, `why_not` keeps its numbers away from ours.

    Accuracies are per cent, `acc` of lm-eval.
    """

    published: Published
    comparison: Comparison
    model: PaperModel | None
    why_not: str
    remarks: tuple[str, ...]

    @property
    def columns(self) -> Labels:
        """The grid's, or the tasks and their mean."""
        return self.published.columns if self.published.measure == "accuracy" else self.comparison.columns

    @property
    def numbers(self) -> list[Number]:
        """Every cell, the dense model's first, under empty labels."""
        return [self._number(row, column) for row in ((), *self.comparison.rows) for column in self.columns]

    def _number(self, row: Labels, column: str) -> Number:
        values = self._values(row, column)
        named = self.published.columns == ("",)  # the paper has a column a model, ours is headed by the model's name
        key = (self.model.key if self.model and not self.why_not else "", row, "" if named else column)
        return Number(
            row,
            column,
            statistics.mean(values) if values else None,
            statistics.stdev(values) if len(values) > 1 else None,
            len(values),
            self.published.numbers.get(key),
            self.published.deviations.get(key),
        )

    def _values(self, row: Labels, column: str) -> list[float]:
        """Of all seeds; a dense model has one."""
        accuracy = self.published.measure == "accuracy"
        place = self.comparison.columns[0] if accuracy else column
        records = self.comparison.records.get((row, place), []) if row else [self.comparison.dense]
        return [_accuracy(each["tasks"], column) if accuracy else float(each["perplexity"]) for each in records]

    @property
    def claims(self) -> list[tuple[str, float, str]]:
        """What the paper says of one row against another: words, our per cent, the paper's mean over its models."""
        found = []
        for claim in self.published.claims:
            ours = [self._values(row, self.comparison.columns[0]) for row in (claim.row, claim.than)]
            if all(ours):
                one, other = map(statistics.mean, ours)
                words = f"perplexity of {' '.join(claim.row)} below that of {' '.join(claim.than)}"
                found.append((words, 100 * (1 - one / other), claim.lower_percent))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data: every number with the paper's and its source, and the runs behind it."""
        source = self.published.source
        cells = [
            {**cell._asdict(), "source": _place(source, self.model, cell) if cell.paper else None}
            for cell in self.numbers
        ]
        return {
            "kind": "reproduction",
            "name": self.published.name,
            "measure": self.published.measure,
            "source": source,
            "paper_model": self.model.title if self.model else None,
            "paper_left_out": self.why_not or None,
            "numbers": cells,
            "claims": [{"claim": words, "ours": ours, "paper": paper} for words, ours, paper in self.claims],
            "remarks": list(self.remarks),
            "model": self.comparison.model,
            "heads": list(self.comparison.heads),
            "columns": list(self.columns),
            "dense": self.comparison.dense,
            "runs": [
                {"row": list(row), "column": column, **{key: record[key] for key in _KEPT if key in record}}
                for (row, column), found in self.comparison.records.items()
                for record in found
            ],
            "not_run": self.comparison.remarks,
        }


@dataclass(frozen=True)
class Asked:
    """What of the paper's protocol is to be another way; None: as the paper has it."""

    overrides: Sequence[str] = ()
    seeds: int | None = None
    calibration: str | None = None
    nsamples: int | None = None
    seqlen: int | None = None
    text: str | None = None
    text_field: str | None = None
    eval_seqlen: int | None = None
    max_windows: int | None = None
    data: Path | None = None
    limit: int | None = None

    def evaluation(self) -> dict[str, Any]:
        """Arguments of `run.compare`."""
        return {
            "text": self.text,
            "text_field": self.text_field,
            "seqlen": self.eval_seqlen,
            "max_windows": self.max_windows,
        }


def grid_of(item: Published, model: str, asked: Asked) -> tuple[Grid, Tasks | None]:
    """The runs of a table on a model, and the tasks where it has accuracies.

    Raises:
        RecipeError: it is not made of comparisons, or a change does not fit.
        CalibrationError: task files for a table without tasks.
    """
    if not item.grid:
        raise RecipeError(f"{item.name}: {item.place} is no comparison of pruned models")
    if item.measure != "accuracy" and (asked.data or asked.limit):
        raise CalibrationError(f"{item.name}: {item.place} has no zero-shot tasks, so leave --data and --limit out")
    text = asked.calibration or (DEMO if model == DEMO else None)
    packed = {"sampling": "packed"} if text and not _sampling(asked.overrides) else {}
    grid = read_comparison(
        item.recipe,
        asked.overrides,
        seeds=asked.seeds,
        calibration=text,
        nsamples=asked.nsamples,
        seqlen=asked.seqlen,
        **packed,
    )
    if item.measure != "accuracy":
        return grid, None
    return grid, Tasks(LOCAL if asked.data else TASKS, asked.data, asked.limit)


def reproduce(
    item: Published,
    model: str,
    asked: Asked,
    *,
    device: str = "auto",
    dtype: str = "auto",
    records: Path | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Run a table's comparisons on a model, as `run.compare`.

    Raises:
        EggsError: see `run.compare`.
    """
    grid, tasks = grid_of(item, model, asked)
    folder = api.find(model)
    how: dict[str, Any] = {**asked.evaluation(), "device": device, "dtype": dtype}
    found = compare(grid, model, tasks=tasks, records=records, progress=progress, **how)
    known = known_model(model, read_config(folder))
    remarks = [*_changes(found, asked), *found.remarks]
    if known and not known[1]:
        remarks.insert(0, f"{model} has the shape of {known[0].title}; the paper's numbers are of {known[0].hub}")
    return Reproduction(item, found, known[0] if known else None, _why_not(item, known, found, asked), tuple(remarks))


def _why_not(item: Published, known: tuple[PaperModel, bool] | None, found: Comparison, asked: Asked) -> str:
    """Why the paper's numbers are not comparable; empty where they are."""
    if known is None or known[0].key not in {model.key for model in item.models}:
        return f"the paper's models are {', '.join(model.title for model in item.models)}"
    if item.measure == "accuracy":
        if asked.data is not None:
            return "the items of local tasks are not those of the paper"
        return "only some items were taken" if asked.limit else ""
    if asked.text not in (None, "wikitext2") and Path(str(asked.text)).name not in _WIKITEXT:
        return f"the paper's text is WikiText-2, not {asked.text}"
    seqlen = found.dense["evaluation"]["seqlen"]
    if seqlen != _SEQLEN:
        return f"the paper's windows are of {_SEQLEN} tokens, not {seqlen}"
    return f"only the first {asked.max_windows} windows were taken" if asked.max_windows else ""


def _changes(found: Comparison, asked: Asked) -> list[str]:
    """How calibration differs from the papers' 128 windows of 2048 tokens of C4, and what else was asked for."""
    used = next((r["calibration"] for records in found.records.values() for r in records if r["calibration"]), None)
    remarks = [f"changed by --set: {', '.join(asked.overrides)}"] if asked.overrides else []
    if used and (asked.calibration or (used["nsamples"], used["seqlen"]) != (_NSAMPLES, _SEQLEN)):
        remarks.append(
            f"calibrated on {used['nsamples']} windows of {used['seqlen']} tokens of {used['source']}; "
            f"the paper: {_NSAMPLES} of {_SEQLEN} of C4"
        )
    return [*remarks, f"seeds for every method that a seed can change: {asked.seeds}"] if asked.seeds else remarks


def _accuracy(tasks: dict[str, Any], column: str) -> float:
    """Per cent of a task, local or not, or the mean of the seven."""
    named = {name.removesuffix("_local"): 100 * float(task["acc"]["value"]) for name, task in tasks.items()}
    return statistics.mean(named.values()) if column == "mean" else named[column]


def _sampling(overrides: Sequence[str]) -> bool:
    return any(each.partition("=")[0].strip() == "calibration.sampling" for each in overrides)


def _place(source: str, model: PaperModel | None, cell: Number) -> str:
    """`..., Table 2, row 50% Wanda -, column LLaMA2-7B`."""
    row = " ".join(cell.row) or "Dense"
    return f"{source}, row {row}, model {model.title if model else ''}, column {cell.column}"
