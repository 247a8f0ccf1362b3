"""A comparison as a table: text cells, Markdown, CSV. Pure functions of records."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Mean and sample standard deviation over seeds (nan for one seed) of a method at a pattern."""

    mean: float
    deviation: float
    seeds: int


@dataclass(frozen=True)
class Grid:
    """Methods down, patterns across; a missing cell is None."""

    methods: tuple[str, ...]
    patterns: tuple[str, ...]
    entries: dict[tuple[str, str], Entry]
    dense: float

    def cell(self, method: str, pattern: str, *, difference: bool = True) -> str:
        """`mean ± sd (+difference to dense)`, or a dash."""
        entry = self.entries.get((method, pattern))
        if entry is None:
            return "-"
        spread = f" ± {entry.deviation:.2f}" if entry.seeds > 1 else ""
        return f"{entry.mean:.2f}{spread}" + (f" ({entry.mean - self.dense:+.2f})" if difference else "")


def tabulate(records: Sequence[dict[str, Any]], dense: float) -> Grid:
    """Gather records into a grid, in the order in which they come."""
    values: dict[tuple[str, str], list[float]] = {}
    for record in records:
        values.setdefault((record["method"], record["pattern"]), []).append(float(record["perplexity"]))
    entries = {
        key: Entry(statistics.mean(found), statistics.stdev(found) if len(found) > 1 else float("nan"), len(found))
        for key, found in values.items()
    }
    methods = tuple(dict.fromkeys(method for method, _ in values))
    patterns = tuple(dict.fromkeys(pattern for _, pattern in values))
    return Grid(methods, patterns, entries, dense)


def markdown(grid: Grid) -> str:
    """A Markdown table of perplexities, dense first."""
    lines = [f"| method | {' | '.join(grid.patterns)} |", "|---|" + "---:|" * len(grid.patterns)]
    lines.append(f"| dense | {' | '.join([f'{grid.dense:.2f}'] * len(grid.patterns))} |")
    for method in grid.methods:
        cells = " | ".join(grid.cell(method, pattern) for pattern in grid.patterns)
        lines.append(f"| {method} | {cells} |")
    return "\n".join(lines) + "\n"


def comma_separated(grid: Grid) -> str:
    """One line a method and pattern: mean, standard deviation, seeds, difference to dense."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "pattern", "perplexity", "sd", "seeds", "difference"])
    writer.writerow(["dense", "", f"{grid.dense:.6g}", "", "", "0"])
    for (method, pattern), entry in grid.entries.items():
        spread = f"{entry.deviation:.6g}" if entry.seeds > 1 else ""
        row = [method, pattern, f"{entry.mean:.6g}", spread, entry.seeds, f"{entry.mean - grid.dense:.6g}"]
        writer.writerow(row)
    return out.getvalue()
