"""Running a grid: every cell is pruned, evaluated and recorded; runs that are recorded already are not repeated."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from eggs_ptp import api
from eggs_ptp.checkpoint.run_record import versions
from eggs_ptp.comparison.grid import Cell, CellKey, ComparisonGrid
from eggs_ptp.comparison.result import Comparison
from eggs_ptp.comparison.run_identity import read_finished_run, run_identity
from eggs_ptp.core.records import write_record
from eggs_ptp.demo.builtin import DEMO
from eggs_ptp.engine.planning.device import find_device
from eggs_ptp.engine.preparation import SharedInputs
from eggs_ptp.errors import CheckpointError, EggsError
from eggs_ptp.evaluation.begin_rule import BeginRule
from eggs_ptp.evaluation.perplexity import Protocol
from eggs_ptp.recipe.recipe import pattern_text

Progress = Callable[[int, int, str], None]  # called with the finished runs, all runs, and a text about the last one


class Estimate(NamedTuple):
    """How much a comparison has to do.

    Attributes:
        pending: Runs that are not recorded yet.
        runs: All runs.
        pruning_seconds: Estimate of the time to prune the pending ones.
        evaluation_seconds: Estimate of the time to evaluate them; None before the dense model is evaluated.
    """

    pending: int
    runs: int
    pruning_seconds: float
    evaluation_seconds: float | None


OnEstimate = Callable[[Estimate], None]


@dataclass(frozen=True)
class ZeroShotTasks:
    """Zero-shot tasks to measure in addition to the perplexity.

    Attributes:
        names: Tasks, as of `api.assess`.
        data: Folder with the files of local tasks.
        limit: Items of each task.
    """

    names: Sequence[str]
    data: Path | None = None
    limit: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with the files that items are read from."""
        files = sorted(map(str, self.data.glob("*.jsonl"))) if self.data else []
        return {"tasks": list(self.names), "data": files, "limit": self.limit}


def compare(
    grid: ComparisonGrid,
    model: str,
    *,
    text: str | None = None,
    text_field: str | None = None,
    protocol: Protocol | None = None,
    seqlen: int | None = None,
    max_windows: int | None = None,
    begin: BeginRule | None = None,
    tasks: ZeroShotTasks | None = None,
    device: str = "auto",
    dtype: str = "auto",
    records: Path | None = None,
    progress: Progress | None = None,
    on_estimate: OnEstimate | None = None,
) -> Comparison:
    """Prune a model by every cell of a grid, and evaluate each result, and the dense model, on the same text.

    If a run fails, the reason becomes a remark, and the cell's other seeds are not run.

    Args:
        grid: The runs.
        model: Folder or name of the model.
        text: Evaluation text, as of `api.evaluate`. This and the other arguments of the evaluation that are None are
            those of the grid, or else the defaults.
        text_field: Field of its documents.
        protocol: How the text is cut into windows.
        seqlen: Tokens of a window.
        max_windows: Evaluate only the first windows.
        begin: Whether packed windows begin with the begin token; "auto" decides by the dense model for all runs.
        tasks: Zero-shot tasks; their scores are in the records, not in the table.
        device: Device of pruning and evaluation.
        dtype: Type of the weights.
        records: Folder in which the record of each finished run is stored as a JSON file. A run that has a record
            there (of the same recipe, model, texts and evaluation) is not repeated.
        progress: Called after the evaluation of the dense model and after each run.
        on_estimate: Called before the first run and, when the time of an evaluation is known, once more.

    Raises:
        EggsError: The model cannot be loaded, the evaluation text cannot be used, or a record cannot be written.
    """
    arguments = {
        "text": text,
        "text_field": text_field,
        "protocol": protocol,
        "seqlen": seqlen,
        "max_windows": max_windows,
        "begin": begin,
    }
    runner = _CellRunner(model, _evaluation(grid, arguments), {"device": device, "dtype": dtype}, records, tasks)
    cells = list(grid.cells())
    notify = progress or (lambda *_: None)
    pending = [cell for cell in cells if runner.recorded(cell) is None] if on_estimate else []
    pruning_seconds = runner.estimate_pruning(pending)
    if on_estimate:
        on_estimate(Estimate(len(pending), len(cells), pruning_seconds, None))
    dense, outcome = runner.run(None)
    if on_estimate:
        evaluation_seconds = dense["evaluation"]["seconds"] * len(pending)
        on_estimate(Estimate(len(pending), len(cells), pruning_seconds, evaluation_seconds))
    notify(0, len(cells), f"dense: {outcome}")
    cell_records: dict[CellKey, list[dict[str, Any]]] = {}
    failed: dict[CellKey, str] = {}
    for done, cell in enumerate(cells, 1):
        if cell.key in failed:
            outcome = "left out, since a previous seed failed"
        else:
            try:
                record, outcome = runner.run(cell)
                cell_records.setdefault(cell.key, []).append(record)
            except CheckpointError:  # a record cannot be written: the other runs would fail in the same way
                raise
            except Exception as error:  # a user's step may raise anything, and the other runs are still worth having
                reason = str(error) if isinstance(error, EggsError) else f"{type(error).__name__}: {error}"
                outcome = f"failed: {' '.join(reason.split())}"
                failed[cell.key] = f"{cell} {outcome}"
        notify(done, len(cells), f"{cell}: {outcome}")
    return _comparison(grid, model, dense, cell_records, failed)


def count_recorded_runs(
    grid: ComparisonGrid,
    model: str,
    records: Path,
    *,
    tasks: ZeroShotTasks | None = None,
    device: str = "auto",
    dtype: str = "auto",
    **evaluation: Any,
) -> tuple[int, int]:
    """Return how many runs `compare` with the same arguments would not repeat, and of how many, the dense one included.

    Args:
        grid: As of `compare`, and so are all arguments.
        model: Folder or name of the model.
        records: Folder with the records of finished runs.
        tasks: Zero-shot tasks.
        device: Device of pruning and evaluation.
        dtype: Type of the weights.
        **evaluation: Arguments of the evaluation.
    """
    runner = _CellRunner(model, _evaluation(grid, evaluation), {"device": device, "dtype": dtype}, records, tasks)
    is_recorded = [runner.recorded(cell) is not None for cell in (None, *grid.cells())]
    return sum(is_recorded), len(is_recorded)


def _evaluation(grid: ComparisonGrid, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the evaluation: those that are given, or else those of the grid."""
    keys = ("text", "text_field", "protocol", "seqlen", "max_windows", "begin")
    evaluation = {key: grid.evaluation.get(key) if arguments.get(key) is None else arguments[key] for key in keys}
    return {**evaluation, "text_field": evaluation["text_field"] or "text", "begin": evaluation["begin"] or "auto"}


class _CellRunner:
    """Runs cells on one model, or reads their records.

    Args:
        model: Folder or name of the model.
        evaluation: Arguments of the evaluation.
        placement: Device and dtype, as the user named them.
        records: Folder with records; None for none.
        tasks: Zero-shot tasks.
    """

    def __init__(
        self,
        model: str,
        evaluation: dict[str, Any],
        placement: dict[str, Any],
        records: Path | None,
        tasks: ZeroShotTasks | None = None,
    ) -> None:
        self._model = model
        self._evaluation = evaluation
        self._placement = placement
        self._records = records
        self._tasks = tasks
        self._folder = api.find(model)
        self._shared = SharedInputs()
        self._begin = evaluation["begin"]  # once the dense model is evaluated, the rule that was decided by it

    def run(self, cell: Cell | None) -> tuple[dict[str, Any], str]:
        """Return the record of a cell, or of the dense model (None), and a text about the outcome."""
        known = self.recorded(cell)
        if known and (cell is None or _begin_rule_of(known["evaluation"]) == self._begin):
            self._begin = _begin_rule_of(known["evaluation"])
            return known, f"{known['perplexity']:.2f}, as recorded"
        record = self._prune(cell) if cell else self._evaluate(self._model)
        if path := self._record_path(cell):
            write_record(path, record)
        self._begin = _begin_rule_of(record["evaluation"])
        seconds = record["evaluation"]["seconds"] + record.get("seconds", 0.0)
        return record, f"{record['perplexity']:.2f} in {seconds:.1f} s"

    def recorded(self, cell: Cell | None) -> dict[str, Any] | None:
        """Return the stored record of a cell; None if it has none."""
        path = self._record_path(cell)
        return read_finished_run(path) if path else None

    def estimate_pruning(self, cells: Sequence[Cell]) -> float:
        """Return the seconds that pruning by cells takes by their plans; 0 for a cell that cannot be planned.

        Raises:
            EggsError: No cell can be planned, so that there is nothing to compare.
        """
        seconds: dict[CellKey, float] = {}
        faults: dict[CellKey, EggsError] = {}
        for cell in cells:
            if cell.key not in seconds:
                try:
                    seconds[cell.key] = api.plan(self._model, cell.recipe, **self._placement).seconds
                except EggsError as error:  # becomes a remark when the cell is run
                    seconds[cell.key] = 0.0
                    faults[cell.key] = error
        if seconds.keys() == faults.keys():
            for fault in faults.values():
                raise fault
        return sum(seconds[cell.key] for cell in cells)

    def _record_path(self, cell: Cell | None) -> Path | None:
        """Return the file of a cell's record; None without a folder for records."""
        if self._records is None:
            return None
        settings = {**self._evaluation, **self._placement, "device": str(find_device(self._placement["device"]))}
        if self._tasks:
            settings |= self._tasks.to_dict()
        name = run_identity(cell.recipe if cell else None, self._model, self._folder, settings)
        return self._records / f"{name}.json"

    def _evaluate(self, model: str | Path) -> dict[str, Any]:
        """Return perplexity, evaluation and versions, and the scores of zero-shot tasks."""
        if self._tasks is None:
            perplexity = api.evaluate(model, **{**self._evaluation, "begin": self._begin}, **self._placement)
            return {
                "model": self._model,
                "perplexity": perplexity.value,
                "evaluation": perplexity.to_record(),
                "text": self._evaluation["text"],
                "versions": versions(),
            }
        text = self._evaluation["text"] or (DEMO if self._model == DEMO else "wikitext2")
        arguments = {**self._evaluation, "begin": self._begin, "text": text, "limit": self._tasks.limit}
        results = api.assess(
            model, tasks=self._tasks.names, data=self._tasks.data, **arguments, **self._placement
        ).results
        assert results.perplexity is not None  # noqa: S101 - a text is given
        scores = {
            name: {
                "items": task.items,
                "truncated": task.truncated,
                "sha256": task.sha256,
                **{metric: task.mean(metric).to_dict() for metric in task.scores},
            }
            for name, task in results.tasks.items()
        }
        return {
            "model": self._model,
            "perplexity": results.perplexity.value,
            "evaluation": results.perplexity.to_record(),
            "text": text,
            "tasks": scores,
            "versions": {**versions(), "lm_eval": version("lm_eval")},
        }

    def _prune(self, cell: Cell) -> dict[str, Any]:
        """Prune by a cell's recipe in a temporary folder, evaluate, and return the record."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            start = time.process_time()
            run = api.prune(self._model, folder, cell.recipe, shared=self._shared, **self._placement)
            processor_seconds = time.process_time() - start
            evaluated = self._evaluate(folder)
        sizes = [matrix["shape"][0] * matrix["shape"][1] for matrix in run.matrices]
        kept = [matrix["density"] * size for matrix, size in zip(run.matrices, sizes, strict=True)]
        errors = [matrix["output_error"] for matrix in run.matrices if matrix["output_error"] is not None]
        return {
            "row": list(cell.key[0]),
            "column": cell.key[1],
            "method": cell.recipe.method,
            "pattern": pattern_text(cell.recipe.pattern),
            "seed": cell.recipe.seed,
            **evaluated,
            "density": sum(kept) / sum(sizes),
            "output_error": sum(errors) / len(errors) if errors else None,
            "B": [matrix["B"] for matrix in run.matrices if "B" in matrix],
            "seconds": run.seconds,
            "processor_seconds": processor_seconds,
            "peak_memory_bytes": run.peak_memory_bytes,
            "device": run.device,
            "dtype": run.dtype,
            "calibration": run.calibration,
            "recipe": cell.recipe.to_toml(),
            "recipe_sha256": run.recipe_sha256,
        }


def _begin_rule_of(evaluation: dict[str, Any]) -> BeginRule:
    """Return the begin rule that gives the same windows as an evaluation; the tokens in them are the tokenizer's."""
    if evaluation["protocol"] != "packed":
        return "auto"
    return "always" if evaluation.get("begin_tokens") else "never"


def _comparison(
    grid: ComparisonGrid,
    model: str,
    dense: dict[str, Any],
    records: dict[CellKey, list[dict[str, Any]]],
    failed: dict[CellKey, str],
) -> Comparison:
    """Return the finished grid; a column without a label is labelled with the model's name."""
    model_name = Path(model).name or model
    heads = {column.label: column.label or model_name for column in grid.columns}

    def with_heads(cells: dict[CellKey, Any]) -> dict[CellKey, Any]:
        return {(row, heads[column]): value for (row, column), value in cells.items()}

    rows = tuple(row.labels for row in grid.rows)
    in_table_order = {
        (row, column): records[row, column] for row in rows for column in heads if (row, column) in records
    }
    return Comparison(
        model=model,
        title=grid.title,
        heads=grid.heads,
        rows=rows,
        columns=tuple(heads.values()),
        dense=dense,
        records=with_heads(in_table_order),
        undefined=with_heads(grid.undefined),
        failed=with_heads(failed),
    )
