"""Running a grid: prune, evaluate, keep a record of each run, skip what is recorded already."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eggs_ptp import api
from eggs_ptp.checkpoint.record import versions
from eggs_ptp.comparison.grid import Cell, Grid, identity
from eggs_ptp.errors import CheckpointError, EggsError


@dataclass(frozen=True)
class Comparison:
    """A finished grid: the dense model's evaluation, one record a run, and the cells that could not be."""

    model: str
    dense: dict[str, Any]
    records: tuple[dict[str, Any], ...]
    left_out: dict[tuple[str, str], str]
    failed: dict[tuple[str, str], str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        missing = {**self.left_out, **self.failed}
        return {
            "model": self.model,
            "dense": self.dense,
            "records": list(self.records),
            "missing": [{"method": m, "pattern": p, "reason": why} for (m, p), why in missing.items()],
        }


def compare(
    grid: Grid,
    model: str,
    *,
    text: str | None = None,
    protocol: str | None = None,
    seqlen: int | None = None,
    max_windows: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    records: Path | None = None,
    progress: Callable[[Cell, int, int, bool], None] | None = None,
) -> Comparison:
    """Run every cell of the grid on one model and evaluate each on the same text.

    With a `records` folder each finished run is kept there as one JSON file, and a run whose record is there already
    (same recipe, same model files, same evaluation) is not run again. A cell that fails is reported, not raised.

    Raises:
        EggsError: the model, the text or the common recipe is not possible.
    """
    evaluation = {"text": text, "protocol": protocol, "seqlen": seqlen, "max_windows": max_windows, "dtype": dtype}
    measure: dict[str, Any] = {**evaluation, "device": device}
    dense = api.evaluate(model, **measure).to_dict()
    cells, folder = list(grid.cells()), api.find(model)
    shared = api.Shared()
    found, failed = [], {}
    for done, cell in enumerate(cells):
        path = records / f"{identity(cell, folder, evaluation)}.json" if records else None
        known = _read(path)
        if progress:
            progress(cell, done, len(cells), known is not None)
        if known is None and (cell.label, cell.pattern) not in failed:
            try:
                known = _run(cell, model, measure, device, dtype, shared)
            except EggsError as error:
                failed[cell.label, cell.pattern] = str(error)
                continue
            _write(path, known)
        if known is not None:
            found.append(known)
    return Comparison(model, dense, tuple(found), grid.left_out(), failed)


def _run(
    cell: Cell, model: str, measure: dict[str, Any], device: str, dtype: str, shared: api.Shared
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        record = api.prune(model, folder, cell.recipe, device=device, dtype=dtype, shared=shared)
        found = api.evaluate(folder, **measure)
    return {
        "method": cell.label,
        "pattern": cell.pattern,
        "seed": cell.seed,
        "perplexity": found.value,
        "evaluation": found.to_dict(),
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "density": _mean([matrix["density"] for matrix in record.matrices]),
        "output_error": _mean([m["output_error"] for m in record.matrices if m["output_error"] is not None]),
        "B": [matrix["B"] for matrix in record.matrices if "B" in matrix],
        "recipe": record.recipe,
        "recipe_sha256": record.recipe_sha256,
        "versions": versions(),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _read(path: Path | None) -> dict[str, Any] | None:
    if path is None or not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found if "perplexity" in found else None
    except (json.JSONDecodeError, UnicodeDecodeError):  # cut short by a crash: the run is done again
        return None


def _write(path: Path | None, record: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".partial")
        draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
