"""Comparison: the records of a finished grid, and the entries of its table."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eggs_ptp.comparison.grid import CellKey, Labels


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
                {"row": list(row), "column": column, **record}
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
            "remark": self.remark(row, column),
        }
