"""The page docs/reproduction.md, from docs/results/reproduction/*.json and the papers' tables that ship as data."""

import json
from pathlib import Path
from typing import Any

from eggs_ptp.comparison.file import read_comparison
from eggs_ptp.comparison.published import Published, published

RECORDS = Path(__file__).parent / "results" / "reproduction"
_HEAD = """# Reproduction

<!-- Written by docs/make_pages.py from docs/results/reproduction/*.json and the tables in src/eggs_ptp/comparison. -->

`eggs reproduce` lists the tables and figures of EGGS-PTP (arXiv:2508.09471) and Symmetric Pruning (arXiv:2501.18980),
`eggs reproduce NAME` shows the paper's numbers, and `eggs reproduce NAME --model MODEL` runs the table on any model. It
runs nothing but comparisons ([comparing](comparing.md)): `-o DIR` keeps a record of each run, and the same call again
runs what is missing; `eggs reproduce --model MODEL -o DIR` lists how much of each table is there. `--seeds`, `--set`,
`--calibration`, `--nsamples`, `--seqlen`, `--text`, `--text-field`, `--eval-seqlen` and `--max-windows` are those of
`eggs compare`; `--json` prints every number with the paper's and its source.

The paper's numbers, kept as they were printed, stand beside ours only where they can be compared:

- the model is one of the paper's, by its config; one of the same shape but another name is said to be so;
- perplexity is of WikiText-2 (from the hub, or a file `wiki.test.raw`), in all its windows of 2048 tokens;
- accuracy is of the hub's tasks, all items, lm-eval's `acc`. With `--data DIR` the `*_local` tasks take their place
  (`--limit N`: N items of each), and their numbers never stand beside the paper's.

Calibration other than 128 windows of 2048 tokens of C4 is remarked. Which settings the tables have, and how far they
are known: [comparing](comparing.md#the-tables-of-the-symmetric-pruning-paper). EGGS-PTP's tables are not known as such, only
a few of their numbers; its rows here are the paper's method as read (`eggs_paper`, B = 5) and our best reading
(`eggs`), beside their baselines, with an order of channels for each activation (`orders = "mask"`).

**No row has been run on a model of the papers here**: that takes a hub and a GPU, which this project had not. What was
run is on the model that comes with the package, to show that every step works, and says nothing about the papers'
numbers: it has 0.9 million weights, theirs have 1 to 13 thousand million, and its text is documentation of Python.
"""
_AWAITS = {
    "perplexity": "hub, GPU",
    "accuracy": "hub, GPU, `pip install 'eggs-ptp[eval]'`",
    "speed": "hub, an A100",
    "picture": "hub, `pip install 'eggs-ptp[report]'`",
}


def reproduction() -> str:
    """An overview, then a section each: what the paper's rows await, and ours where a record has them."""
    items = published()
    found = {name: record for name in items if (record := _record(name))}
    parts = [_HEAD, "## What has been run, and what awaits what\n", *_overview(items, found)]
    for name, item in items.items():
        parts += [f"\n## {name}\n", f"{item.source}: {item.title}.\n"]
        parts += [_commands(item), _ours(item, found[name]) if name in found else "Not run here on any model.\n"]
    return "\n".join(parts).rstrip() + "\n"


def _record(name: str) -> dict[str, Any] | None:
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _overview(items: Any, found: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| name | place | rows run here | on | the paper's rows await |", "|---|---|---|---|---|"]
    for name, item in items.items():
        rows, ran = _rows(item, found.get(name))
        lines.append(
            f"| [{name}](#{name}) | {item.paper.title}, {item.place} | {ran} of {rows} | "
            f"{found[name]['model'] if name in found else '-'} | {_AWAITS[item.measure]} |"
        )
    return lines


def _rows(item: Published, record: dict[str, Any] | None) -> tuple[int, int]:
    """Rows that there are, and those of which every column has a number of ours."""
    if not item.grid:
        return 1, int(record is not None)
    rows = [list(row.labels) for row in read_comparison(item.recipe).rows]
    if record is None:
        return len(rows), 0
    missing = [cell["row"] for cell in record["numbers"] if cell["ours"] is None]
    have = [cell["row"] for cell in record["numbers"]]
    return len(rows), sum(row in have and row not in missing for row in rows)


def _commands(item: Published) -> str:
    """For each of the paper's models."""
    if item.measure == "speed":
        return f"`eggs reproduce {item.name}` prints the commands: speed is measured by `eggs bench`, nothing else.\n"
    keep = "figures" if item.measure == "picture" else "records"
    lines = [f"eggs reproduce {item.name} --model {model.hub} -o out/{keep}" for model in item.models]
    return "\n".join(["```", *lines, "```\n"])


def _ours(item: Published, record: dict[str, Any]) -> str:
    made = f"Run here: `{record['command']}`."
    if item.measure == "picture":
        found = record["stripes"]
        return (
            f"{made} It drew `{record['matrix']}` of {record['model']}: of the variance of its absolute values "
            f"{found['by_output']:.1%} lies between outputs, {found['output_ratio']:.1f} times what entries without order "
            f"would have, and {found['by_input']:.1%} between inputs, {found['input_ratio']:.1f} times.\n"
        )
    evaluation = record["dense"]["evaluation"]
    used = next(run["calibration"] for run in record["runs"] if run["calibration"])  # magnitude takes none
    calibration = f"{used['nsamples']} windows of {used['seqlen']} tokens of {used['source']}"
    what = "Accuracy in per cent" if item.measure == "accuracy" else "Perplexity"
    if item.measure == "accuracy":
        task = next(iter(record["dense"]["tasks"].items()))
        what += (
            f", local tasks, the first {task[1]['items']} items of each: standard errors are about {_error(record):.0f}"
        )
    protocol = f"{evaluation['windows']} {evaluation['protocol']} windows of {evaluation['seqlen']} tokens"
    lines = [
        f"{made} {what}; calibrated on {calibration}; dense perplexity {record['dense']['perplexity']:.2f} on {protocol}.\n"
    ]
    lines.append(_table(record))
    lines += [
        f"\n{claim['claim'][0].upper()}{claim['claim'][1:]} by {claim['ours']:.2f} % here, by {claim['paper']} % as the "
        "paper's mean over its models."
        for claim in record["claims"]
    ]
    return "\n".join([*lines, *(f"\n- {remark}" for remark in record["not_run"]), ""])


def _error(record: dict[str, Any]) -> float:
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
    spread = f" ± {cell['deviation']:.2f}" if cell["deviation"] is not None else ""
    return f"{cell['ours']:.{1 if measure == 'accuracy' else 2}f}{spread}"
