"""The table of a comparison as text cells, Markdown and CSV."""

import csv
import io

from eggs_ptp.comparison.grid import Labels
from eggs_ptp.comparison.result import Comparison
from eggs_ptp.evaluation.verdict import format_ratio


def text_rows(comparison: Comparison) -> list[list[str]]:
    """Return the cells of the table as text, the dense model first.

    After the labels, a cell is `mean ± sd (difference to dense)`, `failed`, or a dash where the method is not defined.
    """
    dense = [f"{comparison.dense['perplexity']:.2f}"] * len(comparison.columns)
    dense_row = ["dense", *"-" * (len(comparison.heads) - 1), *dense]
    rows = [
        [*labels, *(_cell(comparison, labels, column) for column in comparison.columns)] for labels in comparison.rows
    ]
    return [dense_row, *rows]


_CSV_DETAILS = ("ratio_to_best", "ratio_low", "ratio_high", "processor_seconds", "peak_memory_bytes")
DETAIL_HEADS = (">perplexity", ">× dense", ">× best (95 %)", ">CPU s", ">MB")


def detail_rows(comparison: Comparison) -> list[list[str]]:
    """Return a row per finished cell, column by column and the best first.

    After the labels and the column's head: perplexity, its ratio to the dense model's, its paired ratio to the best of
    the column with the 95 % interval, and processor time and peak memory of pruning, means over seeds.
    """
    rows = []
    for column in comparison.columns:
        summaries = {row: summary for row in comparison.rows if (summary := comparison.summary(row, column))}
        for labels in sorted(summaries, key=lambda row: summaries[row].mean):
            seconds = comparison.cost(labels, column, "processor_seconds")
            memory = comparison.cost(labels, column, "peak_memory_bytes")
            rows.append(
                [
                    " ".join(filter(None, labels)),
                    column,
                    f"{summaries[labels].mean:.2f}",
                    format_ratio(summaries[labels].mean / comparison.dense["perplexity"]),
                    _ratio_to_best(comparison, labels, column),
                    "-" if seconds is None else f"{seconds:.1f}",
                    "-" if memory is None else f"{memory / 1e6:.0f}",
                ]
            )
    return rows


def _ratio_to_best(comparison: Comparison, labels: Labels, column: str) -> str:
    if comparison.best_row(column) == labels:
        return "best"
    ratio = comparison.ratio_to_best(labels, column)
    if ratio is None:
        return "-"
    interval = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.2f}-{ratio.high:.2f})"
    return f"{format_ratio(ratio.value)}{interval}"


def markdown(comparison: Comparison) -> str:
    """Return the table in Markdown with its title, that of `detail_rows`, remarks and how windows begin."""
    heads = [*comparison.heads, *comparison.columns]
    rule = "|" + "---|" * len(comparison.heads) + "---:|" * len(comparison.columns)
    table = [_markdown_row(heads), rule, *(_markdown_row(row) for row in text_rows(comparison))]
    detail_heads = ["method", "column", *(head.removeprefix(">") for head in DETAIL_HEADS)]
    rule = "|---|---|" + "---:|" * len(DETAIL_HEADS)
    details = [_markdown_row(detail_heads), rule, *(_markdown_row(row) for row in detail_rows(comparison))]
    remarks = [f"- {remark}" for remark in (*comparison.remarks, comparison.begin) if remark]
    parts = [comparison.title, "\n".join(table), "\n".join(details) if len(details) > 2 else "", "\n".join(remarks)]
    return "\n\n".join(part for part in parts if part)


def comma_separated(comparison: Comparison) -> str:
    """Return CSV, one line per cell.

    Labels, column, mean, standard deviation, seeds, difference to dense, paired ratio to the best of the column with
    its 95 % interval, processor seconds, bytes of memory, remark.
    """
    out = io.StringIO()
    csv_out = csv.writer(out, lineterminator="\n")
    csv_out.writerow([*comparison.heads, "column", "perplexity", "sd", "seeds", "difference", *_CSV_DETAILS, "remark"])
    dashes = ["-"] * (len(comparison.heads) - 1)
    csv_out.writerow(
        ["dense", *dashes, "", f"{comparison.dense['perplexity']:.6g}", "", "", "0", *[""] * len(_CSV_DETAILS), ""]
    )
    for labels in comparison.rows:
        for column in comparison.columns:
            summary = comparison.summary(labels, column)
            numbers = ["", "", "0", ""]
            if summary:
                deviation = "" if summary.deviation is None else f"{summary.deviation:.6g}"
                numbers = [f"{summary.mean:.6g}", deviation, str(summary.seeds), f"{summary.difference:.6g}"]
            details = _csv_details(comparison, labels, column)
            csv_out.writerow([*labels, column, *numbers, *details, comparison.remark(labels, column)])
    return out.getvalue().rstrip("\n")


def _csv_details(comparison: Comparison, labels: Labels, column: str) -> list[str]:
    """Return the cells of `_CSV_DETAILS`; those of the best row have no ratio."""
    ratio = comparison.ratio_to_best(labels, column)
    numbers = [None] * 3 if ratio is None else [ratio.value, ratio.low, ratio.high]
    numbers += [comparison.cost(labels, column, key) for key in ("processor_seconds", "peak_memory_bytes")]
    return ["" if number is None else f"{number:.6g}" for number in numbers]


def _cell(comparison: Comparison, labels: tuple[str, ...], column: str) -> str:
    """Return one cell as text."""
    summary = comparison.summary(labels, column)
    if summary is None:
        return "failed" if (labels, column) in comparison.failed else "-"
    deviation = "" if summary.deviation is None else f" ± {summary.deviation:.2f}"
    return f"{summary.mean:.2f}{deviation} ({summary.difference:+.2f})"


def _markdown_row(cells: list[str]) -> str:
    """Return a row of a Markdown table, with `|` escaped in its cells."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
