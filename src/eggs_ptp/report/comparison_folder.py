"""Comparison folders: the records that `eggs compare -o` has stored, put together as one comparison."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eggs_ptp.checkpoint.staging import MANIFEST
from eggs_ptp.errors import CheckpointError
from eggs_ptp.evaluation.paired import paired_ratio
from eggs_ptp.report.record_files import Kind, Record, read_record

_UNNAMED = "a model that the records do not name"


def read_comparison_folder(folder: Path) -> list[Record]:
    """Return the comparisons in a folder of `eggs compare -o`: one per model and evaluation.

    Runs with the same row, column and recipe but for the seed are one cell of the table.

    Args:
        folder: The folder.

    Returns:
        The comparisons, as `eggs compare --json` writes them; empty for other folders, such as pruned ones.
    """
    if (folder / MANIFEST).exists():
        return []
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = read_record(path)
        except CheckpointError:  # such as the record of a run that was interrupted
            continue
        if record.kind is Kind.compared_run:
            evaluation = record.data["evaluation"]
            windows = str(evaluation.get("sha256") or (evaluation.get("windows"), evaluation.get("tokens")))
            runs.setdefault((record.model or _UNNAMED, windows), []).append(record.data)
    return [Record(folder, Kind.comparison, _comparison(model, records)) for (model, _), records in runs.items()]


def _comparison(model: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the document of a comparison from the records of its runs."""
    dense = next((record for record in records if "recipe" not in record), None)
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        if "recipe" in record:
            row = " ".join(record.get("row") or [str(record["method"])])
            cells.setdefault((row, str(record.get("column") or record["pattern"])), []).append(record)
    best: dict[str, list[dict[str, Any]]] = {}
    for (_, column), members in sorted(cells.items(), key=lambda cell: _mean(cell[1], "perplexity") or 0.0):
        best.setdefault(column, members)
    table = [_cell(row, column, members, dense, best[column]) for (row, column), members in cells.items()]
    table.sort(key=lambda cell: (cell["column"], cell["perplexity"]))
    return {
        "model": model,
        "title": "Methods compared",
        "heads": ["method"],
        "columns": list(dict.fromkeys(cell["column"] for cell in table)),
        "dense": dense,
        "table": table,
        "records": list(records),
    }


def _cell(
    row: str,
    column: str,
    records: Sequence[dict[str, Any]],
    dense: dict[str, Any] | None,
    best: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    ratio = None if records is best else paired_ratio(records, best)
    values = [float(record["perplexity"]) for record in records]
    mean = statistics.mean(values)
    return {
        "row": [row],
        "column": column,
        "perplexity": mean,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
        "difference": mean - float(dense["perplexity"]) if dense else None,
        "ratio_to_best": ratio and {"value": ratio.value, "low": ratio.low, "high": ratio.high},
        "processor_seconds": _mean(records, "processor_seconds"),
        "peak_memory_bytes": _mean(records, "peak_memory_bytes"),
        "remark": "",
    }


def _mean(records: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [float(record[key]) for record in records if record.get(key) is not None]
    return statistics.mean(values) if values else None
