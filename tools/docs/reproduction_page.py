"""The page docs/reproduction.md, from docs/results/reproduction/*.json and the papers' tables that ship as data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eggs_ptp.comparison.file import read_comparison
from eggs_ptp.research.reproduction.published import Published, published

RECORDS = Path(__file__).parents[2] / "docs" / "results" / "reproduction"
_HEAD = """# Reproduction

<!-- Written by tools/docs/make_pages.py from docs/results/reproduction/*.json and src/eggs_ptp/research/reproduction/papers. -->

`eggs reproduce` lists the tables and figures of EGGS-PTP (arXiv:2508.09471) and Symmetric Pruning (arXiv:2501.18980),
`eggs reproduce NAME` shows the paper's numbers, and `eggs reproduce NAME --model MODEL` runs the table on any model. All runs
are comparisons ([comparing](comparing.md)): `-o DIR` stores a record of each run, and the same command again runs what is
missing; `eggs reproduce --model MODEL -o DIR` lists how much of each table is recorded. `--seeds`, `--set`, `--calibration`,
`--nsamples`, `--seqlen`, `--text`, `--text-field`, `--eval-seqlen` and `--max-windows` are those of `eggs compare`; `--json`
prints every number with the paper's and its source.

The paper's numbers, as printed, are shown next to the measured ones only if they are comparable:

- the model is one of the paper's, by its config; one with the same shape but another name is remarked on;
- perplexity is of WikiText-2 (from the hub, or a file `wiki.test.raw`), in all its windows of 2048 tokens;
- accuracy is of the hub's tasks, all items, lm-eval's `acc`. With `--data DIR` the `*_local` tasks replace them
  (`--limit N`: N items of each), and their numbers are never compared with the paper's.

Calibration on anything but 128 windows of 2048 tokens of C4 is remarked on. Which settings the tables have, and how much of
them is known: [comparing](comparing.md#the-tables-of-the-symmetric-pruning-paper). EGGS-PTP's tables are not available, only a
few of their numbers; its rows here are the paper's method as read (`eggs_paper`, B = 5) and the best reading (`eggs`), with
their baselines and a channel permutation for each activation (`permutation = "mask"`).

**No row has been run on a model of the papers**: that needs the hub and a GPU, which were not available. What was run uses
the built-in model, to show that every step works, and says nothing about the papers' numbers: it has 0.9 million weights,
their models have 1 to 13 billion, and its text is the documentation of Python.
"""
_REQUIREMENTS = {
    "perplexity": "hub, GPU",
    "accuracy": "hub, GPU, `pip install lm-eval`",
    "speed": "hub, an A100",
    "picture": "hub, `pip install matplotlib jinja2`",
}


def reproduction() -> str:
    """Return an overview, then a section for each table: what the paper's rows require, and what was measured."""
    items = published()
    records = {name: record for name in items if (record := _read_record(name))}
    parts = [_HEAD, "## What was run, and what the rest requires\n", *_overview(items, records)]
    for name, item in items.items():
        parts += [f"\n## {name}\n", f"{item.source}: {item.title}.\n", _commands(item)]
        parts.append(_measured(records[name]) if name in records else "Not run here on any model.\n")
    return "\n".join(parts).rstrip() + "\n"


def _read_record(name: str) -> dict[str, Any] | None:
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _overview(items: Mapping[str, Published], records: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| name | place | rows run here | on | the paper's rows require |", "|---|---|---|---|---|"]
    for name, item in items.items():
        rows, measured = _count_rows(item, records.get(name))
        model = records[name]["model"] if name in records else "-"
        lines.append(
            f"| [{name}](#{name}) | {item.paper.title}, {item.place} | {measured} of {rows} | {model} | "
            f"{_REQUIREMENTS[item.measure]} |"
        )
    return lines


def _count_rows(item: Published, record: dict[str, Any] | None) -> tuple[int, int]:
    """Return the number of rows, and of those that have a measured number in every column."""
    if not item.grid:
        return 1, int(record is not None)
    rows = [list(row.labels) for row in read_comparison(item.recipe).rows]
    if record is None:
        return len(rows), 0
    incomplete = [cell["row"] for cell in record["numbers"] if cell["ours"] is None]
    recorded = [cell["row"] for cell in record["numbers"]]
    return len(rows), sum(row in recorded and row not in incomplete for row in rows)


def _commands(item: Published) -> str:
    """Return the commands for each of the paper's models."""
    if item.measure == "speed":
        return f"`eggs reproduce {item.name}` prints the commands: only `eggs bench` measures speed.\n"
    output = "figures" if item.measure == "picture" else "records"
    lines = [f"eggs reproduce {item.name} --model {model.hub} -o out/{output}" for model in item.models]
    return "\n".join(["```", *lines, "```\n"])


def _measured(record: dict[str, Any]) -> str:
    command = f"Run here: `{record['command']}`."
    if record["measure"] == "picture":
        stripes = record["stripes"]
        return (
            f"{command} It shows `{record['matrix']}` of {record['model']}: of the variance of its absolute values "
            f"{stripes['by_output']:.1%} lies between outputs, {stripes['output_ratio']:.1f} times the value for "
            f"independent entries, and {stripes['by_input']:.1%} between inputs, {stripes['input_ratio']:.1f} times.\n"
        )
    evaluation = record["dense"]["evaluation"]
    calibration = next(run["calibration"] for run in record["runs"] if run["calibration"])  # magnitude has none
    quantity = "Perplexity"
    if record["measure"] == "accuracy":
        items = next(iter(record["dense"]["tasks"].values()))["items"]
        quantity = (
            f"Accuracy in per cent, local tasks, the first {items} items of each: standard errors are about "
            f"{_mean_standard_error(record):.0f}"
        )
    lines = [
        f"{command} {quantity}; calibrated on {calibration['nsamples']} windows of {calibration['seqlen']} tokens of "
        f"{calibration['source']}; dense perplexity {record['dense']['perplexity']:.2f} on {evaluation['windows']} "
        f"{evaluation['protocol']} windows of {evaluation['seqlen']} tokens.\n",
        _table(record),
    ]
    for claim in record["claims"]:
        statement = f"{claim['claim'][0].upper()}{claim['claim'][1:]}"
        lines.append(
            f"\n{statement} by {claim['ours']:.2f} % here, by {claim['paper']} % as the paper's mean over its models."
        )
    lines += [f"\n- {remark}" for remark in record["not_run"]]
    return "\n".join([*lines, ""])


def _mean_standard_error(record: dict[str, Any]) -> float:
    errors = [100 * task["acc"]["standard_error"] for task in record["dense"]["tasks"].values()]
    return sum(errors) / len(errors)


def _table(record: dict[str, Any]) -> str:
    heads = [*record["heads"], *record["columns"]]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(record["heads"]) + "---:|" * len(record["columns"])]
    cells = {(tuple(cell["row"]), cell["column"]): cell for cell in record["numbers"]}
    for row in dict.fromkeys(row for row, _ in cells):
        labels = row or ("dense", *[""] * (len(record["heads"]) - 1))
        numbers = [_number(cells[row, column], record["measure"]) for column in record["columns"]]
        lines.append(f"| {' | '.join([*labels, *numbers])} |")
    return "\n".join(lines)


def _number(cell: dict[str, Any], measure: str) -> str:
    if cell["ours"] is None:
        return "-"
    deviation = f" ± {cell['deviation']:.2f}" if cell["deviation"] is not None else ""
    return f"{cell['ours']:.{1 if measure == 'accuracy' else 2}f}{deviation}"
