"""Comparison: the records of a finished grid, and the entries of its table."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eggs_ptp.comparison.grid import CellKey, Labels
from eggs_ptp.evaluation.begin_rule import describe_begin
from eggs_ptp.evaluation.estimate import Difference
from eggs_ptp.evaluation.paired import paired_ratio
from eggs_ptp.evaluation.verdict import little_text


@dataclass(frozen=True)
class CellSummary:
    """Perplexity of a cell over its seeds.

    Attributes:
        mean: Mean.
        deviation: Sample standard deviation; None for one seed.
        seeds: Number of seeds.
        difference: Mean minus the perplexity of the dense model.
    """

    mean: float
    deviation: float | None
    seeds: int
    difference: float


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        model: The model as the user named it.
        title: Title of the table.
        heads: Heads of the columns with the rows' labels.
        rows: Labels of each row.
        columns: Heads of the other columns, as printed.
        dense: Record of the dense model's evaluation.
        records: Records of the runs of each cell.
        undefined: Cells whose method is not defined for their pattern, with the reason.
        failed: Cells of which a run failed, with the reason.
    """

    model: str
    title: str
    heads: Labels
    rows: tuple[Labels, ...]
    columns: Labels
    dense: dict[str, Any]
    records: Mapping[CellKey, list[dict[str, Any]]]
    undefined: Mapping[CellKey, str] = field(default_factory=dict)
    failed: Mapping[CellKey, str] = field(default_factory=dict)

    def summary(self, row: Labels, column: str) -> CellSummary | None:
        """Return the perplexity of a cell over its seeds; None if it has no finished run."""
        values = [float(record["perplexity"]) for record in self.records.get((row, column), ())]
        if not values:
            return None
        mean = statistics.mean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return CellSummary(mean, deviation, len(values), mean - self.dense["perplexity"])

    def best_row(self, column: str) -> Labels | None:
        """Return the row with the lowest perplexity in a column; None if no run has finished there."""
        means = {row: summary.mean for row in self.rows if (summary := self.summary(row, column))}
        return min(means, key=means.__getitem__) if means else None

    def ratio_to_dense(self, row: Labels, column: str) -> Difference | None:
        """Return the perplexity of a cell over that of the dense model, see `paired.paired_ratio`."""
        return paired_ratio(self.records.get((row, column), ()), [self.dense])

    def ratio_to_best(self, row: Labels, column: str) -> Difference | None:
        """Return the perplexity of a cell over that of the best row in its column; None for the best row itself."""
        best = self.best_row(column)
        if best is None or best == row:
            return None
        return paired_ratio(self.records.get((row, column), ()), self.records[best, column])

    def cost(self, row: Labels, column: str, key: str) -> float | None:
        """Return the mean over seeds of a number in the records, such as `processor_seconds`; None if none has it."""
        values = [record[key] for record in self.records.get((row, column), ()) if record.get(key) is not None]
        return statistics.mean(values) if values else None

    @property
    def warnings(self) -> list[str]:
        """What makes the numbers less certain: too little evaluation text, records without losses."""
        evaluation = self.dense["evaluation"]
        warnings = [little_text(evaluation["windows"], evaluation["tokens"])]
        if self.records and any(paired_ratio(records, [self.dense]) is None for records in self.records.values()):
            warnings.append(
                "some records are of an older version, without the loss of each window, so they cannot be paired: "
                "delete them to run them again"
            )
        return [warning for warning in warnings if warning]

    @property
    def begin(self) -> str:
        """How evaluation windows begin, in all runs, and why; empty where they begin in mid-text."""
        evaluation = self.dense["evaluation"]
        return describe_begin(evaluation.get("begin_tokens", ()), evaluation.get("begin_reason", ""))

    def remark(self, row: Labels, column: str) -> str:
        """Return why a cell, or a seed of it, is missing; empty if none is."""
        return self.failed.get((row, column)) or self.undefined.get((row, column), "")

    @property
    def remarks(self) -> list[str]:
        """All remarks, those about undefined cells first."""
        return [*self.undefined.values(), *self.failed.values()]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: the table, cell by cell, and the records that it is made from."""
        table = [self._cell_fields(row, column) for row in self.rows for column in self.columns]
        return {
            "model": self.model,
            "title": self.title,
            "heads": list(self.heads),
            "columns": list(self.columns),
            "dense": self.dense,
            "table": table,
            "records": [
                {**record, "row": list(row), "column": column}
                for (row, column), records in self.records.items()
                for record in records
            ],
        }

    def _cell_fields(self, row: Labels, column: str) -> dict[str, Any]:
        """Return one cell of the table as plain data."""
        summary = self.summary(row, column)
        return {
            "row": list(row),
            "column": column,
            "perplexity": summary.mean if summary else None,
            "sd": summary.deviation if summary else None,
            "seeds": summary.seeds if summary else 0,
            "difference": summary.difference if summary else None,
            "ratio_to_dense": _plain(self.ratio_to_dense(row, column)),
            "ratio_to_best": _plain(self.ratio_to_best(row, column)),
            "processor_seconds": self.cost(row, column, "processor_seconds"),
            "peak_memory_bytes": self.cost(row, column, "peak_memory_bytes"),
            "remark": self.remark(row, column),
        }


def _plain(ratio: Difference | None) -> dict[str, Any] | None:
    """Return a ratio as plain data."""
    return ratio.to_dict() if ratio else None
