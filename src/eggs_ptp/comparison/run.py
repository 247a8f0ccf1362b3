"""Running a grid: prune, evaluate, keep a record of each run, skip what is recorded already."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eggs_ptp import api
from eggs_ptp.checkpoint.record import versions
from eggs_ptp.comparison.grid import Cell, Grid, Place
from eggs_ptp.comparison.record import identity, read_record, write_record
from eggs_ptp.comparison.result import Comparison
from eggs_ptp.demo.builtin import DEMO
from eggs_ptp.engine.place import find_device
from eggs_ptp.engine.shared import Shared
from eggs_ptp.errors import CheckpointError, EggsError
from eggs_ptp.evaluation.perplexity import Protocol

Progress = Callable[[int, int, str], None]  # runs done, of so many, and what became of the last


@dataclass(frozen=True)
class Tasks:
    """Zero-shot tasks to measure beside the perplexity: `tasks`, `data` and `limit` of `api.assess`."""

    names: Sequence[str]
    data: Path | None = None
    limit: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the files that items come from."""
        files = sorted(map(str, self.data.glob("*.jsonl"))) if self.data else []
        return {"tasks": list(self.names), "data": files, "limit": self.limit}


def compare(
    grid: Grid,
    model: str,
    *,
    text: str | None = None,
    text_field: str | None = None,
    protocol: Protocol | None = None,
    seqlen: int | None = None,
    max_windows: int | None = None,
    tasks: Tasks | None = None,
    device: str = "auto",
    dtype: str = "auto",
    records: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run every cell of the grid on one model, and evaluate each, and the dense model, on the same text.

    Evaluation is that of `api.evaluate`; what is None is as the grid says, else its default. `tasks` are measured
    beside it and stand in the records alone. With a `records` folder
    each finished run is kept there as a JSON file, and what is recorded there already (the same recipe, model, texts
    and evaluation) is not run again. A run that fails becomes a remark, and its cell's other seeds are not tried.

    Raises:
        EggsError: the model or the evaluation text is not possible, or a record cannot be written.
    """
    asked = {"text": text, "text_field": text_field, "protocol": protocol, "seqlen": seqlen, "max_windows": max_windows}
    runs = _Runs(model, _evaluation(grid, asked), {"device": device, "dtype": dtype}, records, tasks)
    cells = list(grid.cells())
    tell = progress or (lambda *_: None)
    dense, how = runs.find(None)
    tell(0, len(cells), f"dense: {how}")
    found: dict[Place, list[dict[str, Any]]] = {}
    failed: dict[Place, str] = {}
    for done, cell in enumerate(cells, 1):
        if cell.place in failed:
            how = "left out, since a seed before it failed"
        else:
            try:
                record, how = runs.find(cell)
                found.setdefault(cell.place, []).append(record)
            except CheckpointError:  # nothing can be written: the other runs would fail alike
                raise
            except Exception as error:  # whatever a step of the user's own raises; the other runs are worth having
                reason = str(error) if isinstance(error, EggsError) else f"{type(error).__name__}: {error}"
                how = f"failed: {' '.join(reason.split())}"
                failed[cell.place] = f"{cell} {how}"
        tell(done, len(cells), f"{cell}: {how}")
    return _gathered(grid, model, dense, found, failed)


def recorded(
    grid: Grid,
    model: str,
    records: Path,
    *,
    tasks: Tasks | None = None,
    device: str = "auto",
    dtype: str = "auto",
    **asked: Any,
) -> tuple[int, int]:
    """How many runs `compare` with the same arguments would find in `records`, dense included, of how many."""
    runs = _Runs(model, _evaluation(grid, asked), {"device": device, "dtype": dtype}, records, tasks)
    found = [runs.recorded(cell) is not None for cell in (None, *grid.cells())]
    return sum(found), len(found)


def _evaluation(grid: Grid, asked: dict[str, Any]) -> dict[str, Any]:
    keys = ("text", "text_field", "protocol", "seqlen", "max_windows")
    found = {key: grid.evaluation.get(key) if asked.get(key) is None else asked[key] for key in keys}
    return {**found, "text_field": found["text_field"] or "text"}


class _Runs:
    """The runs on one model: recorded ones are read, others done."""

    def __init__(
        self,
        model: str,
        evaluation: dict[str, Any],
        place: dict[str, Any],
        records: Path | None,
        tasks: Tasks | None = None,
    ) -> None:
        self._model, self._evaluation, self._place, self._records = model, evaluation, place, records
        self._tasks = tasks
        self._folder = api.find(model)
        self._shared = Shared()

    def find(self, cell: Cell | None) -> tuple[dict[str, Any], str]:
        """The record of a cell (None: of the dense model), and how it was come by."""
        if known := self.recorded(cell):
            return known, f"{known['perplexity']:.2f}, as recorded"
        record = self._prune(cell) if cell else self._evaluate(self._model)
        if path := self._path(cell):
            write_record(path, record)
        seconds = record["evaluation"]["seconds"] + record.get("seconds", 0.0)
        return record, f"{record['perplexity']:.2f} in {seconds:.1f} s"

    def recorded(self, cell: Cell | None) -> dict[str, Any] | None:
        """The record of a cell, where it is kept already."""
        path = self._path(cell)
        return read_record(path) if path else None

    def _path(self, cell: Cell | None) -> Path | None:
        if self._records is None:
            return None
        how = {**self._evaluation, **self._place, "device": str(find_device(self._place["device"]))}
        how |= self._tasks.to_dict() if self._tasks else {}
        return self._records / f"{identity(cell.recipe if cell else None, self._model, self._folder, how)}.json"

    def _evaluate(self, model: str | Path) -> dict[str, Any]:
        if self._tasks is None:
            found = api.evaluate(model, **self._evaluation, **self._place)
            return {"perplexity": found.value, "evaluation": found.to_dict(), "versions": versions()}
        text = self._evaluation["text"] or (DEMO if self._model == DEMO else "wikitext2")
        asked = {**self._evaluation, "text": text, "limit": self._tasks.limit}
        whole = api.assess(model, tasks=self._tasks.names, data=self._tasks.data, **asked, **self._place).results
        assert whole.perplexity is not None  # noqa: S101 - a text was named
        scores = {
            name: {
                "items": task.items,
                "truncated": task.truncated,
                "sha256": task.sha256,
                **{metric: task.mean(metric).to_dict() for metric in task.scores},
            }
            for name, task in whole.tasks.items()
        }
        evaluated = {"perplexity": whole.perplexity.value, "evaluation": whole.perplexity.to_dict()}
        return {**evaluated, "tasks": scores, "versions": {**versions(), "lm_eval": version("lm_eval")}}

    def _prune(self, cell: Cell) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            run = api.prune(self._model, folder, cell.recipe, shared=self._shared, **self._place)
            evaluated = self._evaluate(folder)
        sizes = [matrix["shape"][0] * matrix["shape"][1] for matrix in run.matrices]
        kept = [matrix["density"] * size for matrix, size in zip(run.matrices, sizes, strict=True)]
        errors = [m["output_error"] for m in run.matrices if m["output_error"] is not None]
        return {
            "method": cell.recipe.method,
            "pattern": cell.recipe.pattern,
            "seed": cell.recipe.seed,
            **evaluated,
            "density": sum(kept) / sum(sizes),
            "output_error": sum(errors) / len(errors) if errors else None,
            "B": [matrix["B"] for matrix in run.matrices if "B" in matrix],
            "seconds": run.seconds,
            "peak_memory_bytes": run.peak_memory_bytes,
            "device": run.device,
            "dtype": run.dtype,
            "calibration": run.calibration,
            "recipe": cell.recipe.to_toml(),
            "recipe_sha256": run.recipe_sha256,
        }


def _gathered(
    grid: Grid,
    model: str,
    dense: dict[str, Any],
    found: dict[Place, list[dict[str, Any]]],
    failed: dict[Place, str],
) -> Comparison:
    """The finished grid, its columns without a label under the model's name."""
    name = Path(model).name or model
    heads = {column.label: column.label or name for column in grid.columns}

    def renamed(cells: dict[Place, Any]) -> dict[Place, Any]:
        return {(row, heads[column]): value for (row, column), value in cells.items()}

    rows = tuple(row.labels for row in grid.rows)
    return Comparison(
        model,
        grid.title,
        grid.heads,
        rows,
        tuple(heads.values()),
        dense,
        renamed({(row, column): found[row, column] for row in rows for column in heads if (row, column) in found}),
        renamed(grid.left_out),
        renamed(failed),
    )
