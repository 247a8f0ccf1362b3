"""A table of the papers, run on any model, with the paper's numbers where they are comparable."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from eggs_ptp import api
from eggs_ptp.comparison.file import read_comparison
from eggs_ptp.comparison.grid import ComparisonGrid, Labels
from eggs_ptp.comparison.result import Comparison
from eggs_ptp.comparison.runner import Progress, ZeroShotTasks, compare
from eggs_ptp.demo.builtin import DEMO
from eggs_ptp.errors import CalibrationError, RecipeError
from eggs_ptp.evaluation.harness import LOCAL_TASKS, PAPER_TASKS
from eggs_ptp.evaluation.text import is_wikitext_file
from eggs_ptp.models.folder import read_config
from eggs_ptp.research.reproduction.published import PaperModel, Published, known_model

# The papers' protocol, in evaluation and calibration
PAPER_SEQLEN = 2048
PAPER_NSAMPLES = 128

_RUN_FIELDS = ("seed", "perplexity", "tasks", "density", "output_error", "B", "seconds", "calibration", "recipe_sha256")


class Number(NamedTuple):
    """A cell of a reproduced table.

    Attributes:
        row: Labels of the row; empty for the dense model.
        column: Label of the column.
        measured: Mean over the seeds; None if it did not run.
        deviation: Standard deviation over the seeds.
        seeds: Number of seeds.
        paper: The paper's number, as printed; None if it has none, or none that is comparable.
        paper_deviation: Its standard deviation, as printed.
    """

    row: Labels
    column: str
    measured: float | None
    deviation: float | None
    seeds: int
    paper: str | None
    paper_deviation: str | None


@dataclass(frozen=True)
class Reproduction:
    """A reproduced table. Accuracies are lm-eval's `acc` in per cent.

    Attributes:
        published: The paper's table.
        comparison: The finished runs.
        model: The paper's model with the same config.
        why_not_comparable: Why the paper's numbers are left out; empty if they are shown.
        remarks: Differences from the paper's protocol, and failed runs.
    """

    published: Published
    comparison: Comparison
    model: PaperModel | None
    why_not_comparable: str
    remarks: tuple[str, ...]

    @property
    def columns(self) -> Labels:
        """Those of the grid, or the tasks and their mean."""
        return self.published.columns if self.published.measure == "accuracy" else self.comparison.columns

    @property
    def numbers(self) -> list[Number]:
        """All cells; those of the dense model, which has no labels, come first."""
        return [self._number(row, column) for row in ((), *self.comparison.rows) for column in self.columns]

    def _number(self, row: Labels, column: str) -> Number:
        values = self._values(row, column)
        column_per_model = self.published.columns == ("",)  # here the column is labelled with the model's name
        model_key = self.model.key if self.model and not self.why_not_comparable else ""
        key = (model_key, row, "" if column_per_model else column)
        return Number(
            row=row,
            column=column,
            measured=statistics.mean(values) if values else None,
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            seeds=len(values),
            paper=self.published.numbers.get(key),
            paper_deviation=self.published.deviations.get(key),
        )

    def _values(self, row: Labels, column: str) -> list[float]:
        """Return the values of all seeds; the dense model has one."""
        is_accuracy = self.published.measure == "accuracy"
        grid_column = self.comparison.columns[0] if is_accuracy else column
        records = self.comparison.records.get((row, grid_column), []) if row else [self.comparison.dense]
        if is_accuracy:
            return [_accuracy(record["tasks"], column) for record in records]
        return [float(record["perplexity"]) for record in records]

    @property
    def claims(self) -> list[tuple[str, float, str]]:
        """The paper's claims: in words, in per cent as measured here, and the paper's mean over its models."""
        claims = []
        column = self.comparison.columns[0]
        for claim in self.published.claims:
            values = self._values(claim.row, column)
            baseline_values = self._values(claim.than, column)
            if values and baseline_values:
                statement = f"perplexity of {' '.join(claim.row)} below that of {' '.join(claim.than)}"
                lower = 100 * (1 - statistics.mean(values) / statistics.mean(baseline_values))
                claims.append((statement, lower, claim.lower_percent))
        return claims

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: every number with the paper's and its source, and all runs."""
        return {
            "kind": "reproduction",
            "name": self.published.name,
            "measure": self.published.measure,
            "source": self.published.source,
            "paper_model": self.model.title if self.model else None,
            "paper_left_out": self.why_not_comparable or None,
            "numbers": [self._number_fields(number) for number in self.numbers],
            "claims": [
                {"claim": statement, "ours": measured, "paper": paper} for statement, measured, paper in self.claims
            ],
            "remarks": list(self.remarks),
            "model": self.comparison.model,
            "heads": list(self.comparison.heads),
            "columns": list(self.columns),
            "dense": self.comparison.dense,
            "runs": [
                {"row": list(row), "column": column, **{key: record[key] for key in _RUN_FIELDS if key in record}}
                for (row, column), records in self.comparison.records.items()
                for record in records
            ],
            "not_run": self.comparison.remarks,
        }

    def _number_fields(self, number: Number) -> dict[str, Any]:
        return {
            "row": number.row,
            "column": number.column,
            "ours": number.measured,
            "deviation": number.deviation,
            "seeds": number.seeds,
            "paper": number.paper,
            "paper_deviation": number.paper_deviation,
            "source": self._source_of(number) if number.paper else None,
        }

    def _source_of(self, number: Number) -> str:
        """Return such as `..., Table 2, row 50% Wanda -, model LLaMA2-7B, column `."""
        row = " ".join(number.row) or "Dense"
        model = self.model.title if self.model else ""
        return f"{self.published.source}, row {row}, model {model}, column {number.column}"


@dataclass(frozen=True)
class ProtocolSettings:
    """How a run differs from the paper's protocol; None for what is as in the paper.

    Args:
        overrides: Recipe settings, KEY=VALUE.
        seeds: Number of seeds.
        calibration: Calibration text.
        nsamples: Number of calibration windows.
        seqlen: Tokens of a calibration window.
        text: Evaluation text.
        text_field: Field of its documents.
        eval_seqlen: Tokens of an evaluation window.
        max_windows: Evaluate only the first windows.
        data: Folder with the files of local zero-shot tasks.
        limit: Items of each task.
    """

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

    @property
    def has_papers_text(self) -> bool:
        """Whether the evaluation text is WikiText-2."""
        return self.text in (None, "wikitext2") or is_wikitext_file(self.text, "test")

    def evaluation(self, model: PaperModel | None) -> dict[str, Any]:
        """Return the evaluation arguments of `compare`.

        Args:
            model: The paper's model with the shape of the evaluated one. Its windows begin in mid-text as the paper's
                do; other models may be broken without a begin token, and then get it.
        """
        return {
            "text": self.text,
            "text_field": self.text_field,
            "seqlen": self.eval_seqlen,
            "max_windows": self.max_windows,
            "begin": "never" if model and self.has_papers_text else None,
        }


def build_grid(item: Published, model: str, settings: ProtocolSettings) -> tuple[ComparisonGrid, ZeroShotTasks | None]:
    """Return the runs of a table on a model, and its zero-shot tasks if it measures accuracy.

    Raises:
        RecipeError: The item does not consist of comparisons, or a setting does not fit.
        CalibrationError: Task settings for a table without tasks.
    """
    if not item.grid:
        raise RecipeError(f"{item.name}: {item.place} is not a comparison of pruned models")
    if item.measure != "accuracy" and (settings.data or settings.limit):
        raise CalibrationError(f"{item.name}: {item.place} has no zero-shot tasks; leave out --data and --limit")
    text = settings.calibration or (DEMO if model == DEMO else None)
    packed = {"sampling": "packed"} if text and not _sets_sampling(settings.overrides) else {}
    grid = read_comparison(
        item.recipe,
        settings.overrides,
        seeds=settings.seeds,
        calibration=text,
        nsamples=settings.nsamples,
        seqlen=settings.seqlen,
        **packed,
    )
    if item.measure != "accuracy":
        return grid, None
    return grid, ZeroShotTasks(LOCAL_TASKS if settings.data else PAPER_TASKS, settings.data, settings.limit)


def reproduce(
    item: Published,
    model: str,
    settings: ProtocolSettings,
    *,
    device: str = "auto",
    dtype: str = "auto",
    records: Path | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Run the comparisons of a table on a model.

    Args:
        item: The table.
        model: A model folder, a hub name, or `demo`.
        settings: How the runs differ from the paper's protocol.
        device: As for `compare`.
        dtype: As for `compare`.
        records: Folder in which finished runs are stored and looked up.
        progress: As for `compare`.

    Raises:
        EggsError: See `compare`.
    """
    grid, tasks = build_grid(item, model, settings)
    known = known_model(model, read_config(api.find(model)))
    paper_model, same_name = known or (None, False)
    comparison = compare(
        grid,
        model,
        tasks=tasks,
        records=records,
        progress=progress,
        device=device,
        dtype=dtype,
        **settings.evaluation(paper_model),
    )
    remarks = [*_differences(comparison, settings), *comparison.remarks]
    if paper_model and not same_name:
        remarks.insert(0, f"{model} has the shape of {paper_model.title}; the paper's numbers are of {paper_model.hub}")
    reason = why_not_comparable(item, paper_model, comparison.dense, settings)
    return Reproduction(item, comparison, paper_model, reason, tuple(remarks))


def why_not_comparable(
    item: Published, model: PaperModel | None, dense: dict[str, Any], settings: ProtocolSettings
) -> str:
    """Explain why the paper's numbers are not comparable with measured ones; empty if they are.

    Args:
        item: The table.
        model: The paper's model with the shape of the measured one.
        dense: The record of the dense model's evaluation.
        settings: How the runs differ from the paper's protocol.
    """
    if model is None or model.key not in {paper_model.key for paper_model in item.models}:
        return f"the paper's models are {', '.join(paper_model.title for paper_model in item.models)}"
    if item.measure == "accuracy":
        if settings.data is not None:
            return "the items of local tasks are not those of the paper"
        return "only some items were evaluated" if settings.limit else ""
    if not settings.has_papers_text:
        return f"the paper's text is WikiText-2, not {settings.text}"
    seqlen = dense["evaluation"]["seqlen"]
    if seqlen != PAPER_SEQLEN:
        return f"the paper's windows have {PAPER_SEQLEN} tokens, not {seqlen}"
    return f"only the first {settings.max_windows} windows were evaluated" if settings.max_windows else ""


def _differences(comparison: Comparison, settings: ProtocolSettings) -> list[str]:
    """Describe how the runs differ from the papers' protocol, which calibrates on 128 windows of 2048 tokens of C4."""
    calibrations = (record["calibration"] for records in comparison.records.values() for record in records)
    calibration = next((calibration for calibration in calibrations if calibration), None)
    remarks = []
    if settings.overrides:
        remarks.append(f"changed by --set: {', '.join(settings.overrides)}")
    if calibration:
        size = (calibration["nsamples"], calibration["seqlen"])
        if settings.calibration or size != (PAPER_NSAMPLES, PAPER_SEQLEN):
            remarks.append(
                f"calibrated on {size[0]} windows of {size[1]} tokens of {calibration['source']}; "
                f"the paper: {PAPER_NSAMPLES} of {PAPER_SEQLEN} of C4"
            )
    if settings.seeds:
        remarks.append(f"number of seeds of every method that depends on the seed: {settings.seeds}")
    return remarks


def _accuracy(tasks: dict[str, Any], column: str) -> float:
    """Return the accuracy of a task, local or not, or the mean of all, in per cent."""
    by_name = {name.removesuffix("_local"): 100 * float(task["acc"]["value"]) for name, task in tasks.items()}
    return statistics.mean(by_name.values()) if column == "mean" else by_name[column]


def _sets_sampling(overrides: Sequence[str]) -> bool:
    return any(override.partition("=")[0].strip() == "calibration.sampling" for override in overrides)
