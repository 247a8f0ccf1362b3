"""Comparison: a finished grid, and its table entries."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eggs_ptp.comparison.grid import Labels, Place


@dataclass(frozen=True)
class Entry:
    """Perplexity over seeds: mean, sample standard deviation (None for one seed), difference of the mean to dense."""

    mean: float
    deviation: float | None
    seeds: int
    difference: float


@dataclass(frozen=True)
class Comparison:
    """The dense model's evaluation, one record a run, and remarks about cells that could not be run.

    `columns` are the heads as printed. A cell of `left_out` is not defined; of one of `failed`, a run failed.
    """

    model: str
    title: str
    heads: Labels
    rows: tuple[Labels, ...]
    columns: Labels
    dense: dict[str, Any]
    records: Mapping[Place, list[dict[str, Any]]]
    left_out: Mapping[Place, str] = field(default_factory=dict)
    failed: Mapping[Place, str] = field(default_factory=dict)

    def entry(self, row: Labels, column: str) -> Entry | None:
        """What the runs of a cell came to; None where there is none."""
        values = [float(record["perplexity"]) for record in self.records.get((row, column), ())]
        if not values:
            return None
        mean = statistics.mean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return Entry(mean, deviation, len(values), mean - self.dense["perplexity"])

    def remark(self, row: Labels, column: str) -> str:
        """Why a cell, or a seed of it, is missing; empty where none is."""
        return self.failed.get((row, column)) or self.left_out.get((row, column), "")

    @property
    def remarks(self) -> list[str]:
        """All remarks, those about undefined cells first."""
        return [*self.left_out.values(), *self.failed.values()]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the table, cell by cell, and the records behind it."""
        table: list[dict[str, Any]] = []
        for row in self.rows:
            for column in self.columns:
                found = self.entry(row, column)
                cell = {
                    "perplexity": found.mean if found else None,
                    "sd": found.deviation if found else None,
                    "seeds": found.seeds if found else 0,
                    "difference": found.difference if found else None,
                    "remark": self.remark(row, column),
                }
                table.append({"row": list(row), "column": column, **cell})
        records = [
            {"row": list(row), "column": column, **record}
            for (row, column), found in self.records.items()
            for record in found
        ]
        return {
            "model": self.model,
            "title": self.title,
            "heads": list(self.heads),
            "columns": list(self.columns),
            "dense": self.dense,
            "table": table,
            "records": records,
        }
