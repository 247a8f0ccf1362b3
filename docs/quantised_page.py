"""The page docs/quantised.md, from docs/results/quantised.json."""

import json
import statistics
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "results" / "quantised.json"
Rows = list[dict[str, Any]]
_PAGE = """# Quantised values

<!-- Written by docs/make_pages.py from docs/results/quantised.json. -->

A packed folder may keep its values as whole numbers: int8 with a scale for every row, int4 with one for every 64 values
([format](format.md)). `eggs export --values int8` rounds them to the nearest; `--method eggs++gptq` puts them on the
grid while pruning, by GPTQ on the kept weights, and `eggs export` then changes none of them.

- *linears*: bytes of the block linears, as a share of those of the dense model in its own type.
- *excess*: ln(perplexity / dense), as in [accuracy](accuracy.md); mean over the seeds, with the standard deviation where
  there are several.
- *connections*: the share of weights that are not zero: values that round to zero are connections lost.
- *degree*: the fewest connections that any input of any matrix has. *Floors*: in how many of the matrices with
  EGGS blocks every input still has the connections that Lemma 1 promises.
"""


def quantised() -> str:
    """Tables of the record, and what can be read off them."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    pattern, parts = record["protocol"]["pattern"], [_PAGE]
    for name, facts in record["models"].items():
        rows = [row for row in record["rows"] if row["model"] == name]
        said = f"Dense: {facts['dense']:.2f} on `{facts['evaluation']}`, calibrated on `{facts['calibration']}`."
        parts.append(f"## {name}\n\n{said}\n\n{_table(_grouped(rows))}\n\n{_reading(_grouped(rows), pattern)}\n")
    parts.append(_speed(record))
    parts.append(f"## How it was made\n\n```\n{record['command']}\n```\n\n{_where(record)}")
    return "\n".join(parts)


def _grouped(rows: Rows) -> dict[tuple[Any, ...], Rows]:
    found: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        found.setdefault((row["pattern"], row["values"], row["rounding"]), []).append(row)
    order = [None, "int8", "int4"]
    ranked = sorted(found, key=lambda key: (key[0] is not None, order.index(key[1]), key[2] != "nearest"))
    return {key: found[key] for key in ranked}


def _table(groups: dict[tuple[Any, ...], Rows]) -> str:
    lines = ["| form | rounding | linears | perplexity | excess | connections | degree | floors |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for (pattern, values, rounding), rows in groups.items():
        form = " + ".join(filter(None, (pattern, values))) or "dense"
        graph = " | | "
        if pattern is not None:
            shares = statistics.mean(row["connections"] for row in rows)
            floors = f"{sum(row['floors_held'] for row in rows)} of {sum(row['floors'] for row in rows)}"
            graph = f"{shares:.4f} | {min(row['smallest_degree'] for row in rows)} | {floors}"
        share = rows[0]["bytes"] / rows[0]["dense_bytes"]
        measures = f"{_mean(rows, 'perplexity'):.2f} | {_mean(rows, 'excess'):.4f}{_spread(rows)}"
        lines.append(f"| {form} | {rounding or ''} | {share:.1%} | {measures} | {graph} |")
    return "\n".join(lines)


def _reading(groups: dict[tuple[Any, ...], Rows], pattern: str) -> str:
    plain = _mean(groups[pattern, None, None], "excess")
    lines = []
    for values in ("int8", "int4"):
        nearest, gptq = (_mean(groups[pattern, values, how], "excess") - plain for how in ("nearest", "gptq"))
        lines.append(
            f"- {values} adds {nearest:+.4f} to the excess of {pattern} rounded to the nearest, {gptq:+.4f} by GPTQ."
        )
    return "\n".join(lines)


def _mean(rows: Rows, key: str) -> float:
    return float(statistics.mean(row[key] for row in rows))


def _spread(rows: Rows) -> str:
    return f" ± {statistics.stdev(row['excess'] for row in rows):.4f}" if len(rows) > 1 else ""


def _speed(record: dict[str, Any]) -> str:
    made = list(record["generate"].values())
    forms = list(made[0]["tokens_per_second"])
    lines = [
        "## How fast\n",
        "Forms in turn on one machine, medians; `?` where the middle half of the samples spreads by more than a tenth. Dense",
        "int8 is torch's `_weight_int8pack_mm`; int4 has no kernel of its own, its rows are made dense for every product.\n",
        "Tokens a second by greedy `generate`. These models never leave the caches, and calling their small products costs",
        "more than computing them: what is left are differences of overhead, not of bytes.\n",
        f"| model | {' | '.join(forms)} |",
        "|---|" + "---:|" * len(forms),
    ]
    for name, found in record["generate"].items():
        cells = [f"{found['tokens_per_second'][form]:.0f}{_doubt(found['spread'][form])}" for form in forms]
        lines.append(f"| {name}, {found['dtype']} | {' | '.join(cells)} |")
    lines.append("\nMilliseconds for one input through one matrix that is larger than the caches:\n")
    lines += [f"| matrix | {' | '.join(forms)} |", "|---|" + "---:|" * len(forms)]
    for found in record["products"]:
        cells = [f"{found['milliseconds'][form]:.2f}{_doubt(found['spread'][form])}" for form in forms]
        lines.append(f"| {' x '.join(map(str, found['shape']))}, {found['dtype']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _doubt(spread: float) -> str:
    return "?" if spread > 0.1 else ""


def _where(record: dict[str, Any]) -> str:
    hardware, versions = record["hardware"], record["versions"]
    loads = [found["load"][0][0] for found in (*record["generate"].values(), *record["products"]) if found["load"][0]]
    busy = f", load {min(loads)} to {max(loads)}" if loads else ""
    return (
        f"torch {versions['torch']}, transformers {versions['transformers']}; {hardware['processor']}, "
        f"{hardware['cpus']} cores, {record['generate'][next(iter(record['generate']))]['threads']} thread, kernels for "
        f"{hardware['tier']}{busy}. Seeds: {', '.join(map(str, record['protocol']['seeds']))}.\n"
    )
