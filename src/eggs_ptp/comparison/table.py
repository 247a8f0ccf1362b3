"""A comparison as text cells, Markdown and CSV."""

import csv
import io

from eggs_ptp.comparison.result import Comparison


def text_rows(found: Comparison) -> list[list[str]]:
    """Dense first, then a line a row: labels, then `mean ± sd (difference to dense)`, `failed`, or a dash."""
    dense = [f"{found.dense['perplexity']:.2f}"] * len(found.columns)
    lines = [["dense", *"-" * (len(found.heads) - 1), *dense]]
    lines += [[*row, *(_cell(found, row, column) for column in found.columns)] for row in found.rows]
    return lines


def markdown(found: Comparison) -> str:
    """A Markdown table under its title, with the remarks as a list behind it."""
    heads = [*found.heads, *found.columns]
    rule = "|" + "---|" * len(found.heads) + "---:|" * len(found.columns)
    rows = [_markdown_row(heads), rule, *(_markdown_row(row) for row in text_rows(found))]
    parts = [found.title, "\n".join(rows), "\n".join(f"- {remark}" for remark in found.remarks)]
    return "\n\n".join(part for part in parts if part)


def comma_separated(found: Comparison) -> str:
    """A line a cell: labels, column, mean, standard deviation, seeds, difference to dense, remark."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*found.heads, "column", "perplexity", "sd", "seeds", "difference", "remark"])
    dashes = ["-"] * (len(found.heads) - 1)
    writer.writerow(["dense", *dashes, "", f"{found.dense['perplexity']:.6g}", "", "", "0", ""])
    for row in found.rows:
        for column in found.columns:
            entry = found.entry(row, column)
            numbers = ["", "", "0", ""]
            if entry:
                deviation = "" if entry.deviation is None else f"{entry.deviation:.6g}"
                numbers = [f"{entry.mean:.6g}", deviation, str(entry.seeds), f"{entry.difference:.6g}"]
            writer.writerow([*row, column, *numbers, found.remark(row, column)])
    return out.getvalue().rstrip("\n")


def _cell(found: Comparison, row: tuple[str, ...], column: str) -> str:
    entry = found.entry(row, column)
    if entry is None:
        return "failed" if (row, column) in found.failed else "-"
    spread = "" if entry.deviation is None else f" ± {entry.deviation:.2f}"
    return f"{entry.mean:.2f}{spread} ({entry.difference:+.2f})"


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
