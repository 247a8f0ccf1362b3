"""The page docs/quantised.md, from docs/results/quantised.json."""

import json
import statistics
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[2] / "docs" / "results" / "quantised.json"
Rows = list[dict[str, Any]]
Groups = dict[tuple[Any, ...], Rows]  # by pattern, values and rounding
_HEAD = """# Quantised values

<!-- Written by tools/docs/make_pages.py from docs/results/quantised.json. -->

A packed folder can store its values as integers: int8 with a scale per row, int4 with a scale per 64 values
([format](format.md)). `eggs export --values int8` rounds to the nearest; `--method eggs++gptq` puts the kept weights on the
quantisation grid while pruning, by GPTQ, and `eggs export` then changes none of them.

- *linears*: bytes of the block linears, as a share of those of the dense model in its own type.
- *excess*: ln(perplexity / dense perplexity), as in [accuracy](accuracy.md); mean over the seeds, with the standard
  deviation if there are several.
- *connections*: share of weights that are not zero; values that round to zero are lost connections.
- *degree*: the fewest connections of any input of any matrix. *Floors*: in how many of the matrices with EGGS blocks every
  input still has the connections that Lemma 1 guarantees.
"""


def quantised() -> str:
    """Return the tables of the record, and findings."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    pattern = record["protocol"]["pattern"]
    parts = [_HEAD]
    for name, model in record["models"].items():
        groups = _grouped([row for row in record["rows"] if row["model"] == name])
        dense = f"Dense: {model['dense']:.2f} on `{model['evaluation']}`, calibrated on `{model['calibration']}`."
        parts.append(f"## {name}\n\n{dense}\n\n{_table(groups)}\n\n{_findings(groups, pattern)}\n")
    parts.append(_speed(record))
    parts.append(f"## How it was measured\n\n```\n{record['command']}\n```\n\n{_environment(record)}")
    return "\n".join(parts)


def _grouped(rows: Rows) -> Groups:
    groups: Groups = {}
    for row in rows:
        groups.setdefault((row["pattern"], row["values"], row["rounding"]), []).append(row)
    values_order = [None, "int8", "int4"]
    keys = sorted(groups, key=lambda key: (key[0] is not None, values_order.index(key[1]), key[2] != "nearest"))
    return {key: groups[key] for key in keys}


def _table(groups: Groups) -> str:
    lines = ["| form | rounding | linears | perplexity | excess | connections | degree | floors |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for (pattern, values, rounding), rows in groups.items():
        form = " + ".join(filter(None, (pattern, values))) or "dense"
        graph = " | | "
        if pattern is not None:
            connections = statistics.mean(row["connections"] for row in rows)
            floors = f"{sum(row['floors_held'] for row in rows)} of {sum(row['floors'] for row in rows)}"
            graph = f"{connections:.4f} | {min(row['smallest_degree'] for row in rows)} | {floors}"
        size = rows[0]["bytes"] / rows[0]["dense_bytes"]
        accuracy = f"{_mean(rows, 'perplexity'):.2f} | {_mean(rows, 'excess'):.4f}{_deviation(rows)}"
        lines.append(f"| {form} | {rounding or ''} | {size:.1%} | {accuracy} | {graph} |")
    return "\n".join(lines)


def _findings(groups: Groups, pattern: str) -> str:
    unquantised = _mean(groups[pattern, None, None], "excess")
    lines = []
    for values in ("int8", "int4"):
        nearest = _mean(groups[pattern, values, "nearest"], "excess") - unquantised
        gptq = _mean(groups[pattern, values, "gptq"], "excess") - unquantised
        lines.append(f"- {values} adds {nearest:+.4f} to the excess of {pattern} by rounding, {gptq:+.4f} by GPTQ.")
    return "\n".join(lines)


def _mean(rows: Rows, key: str) -> float:
    return float(statistics.mean(row[key] for row in rows))


def _deviation(rows: Rows) -> str:
    return f" ± {statistics.stdev(row['excess'] for row in rows):.4f}" if len(rows) > 1 else ""


def _speed(record: dict[str, Any]) -> str:
    forms = list(next(iter(record["generate"].values()))["tokens_per_second"])
    lines = [
        "## Speed\n",
        "All forms interleaved on one machine, medians; `?` if the middle half of the samples spreads by more than a tenth.",
        "Dense int8 is torch's `_weight_int8pack_mm`; int4 has no kernel, its rows are made dense for every product.\n",
        "Tokens per second of greedy `generate`. These models fit into the caches, and calling their small products costs",
        "more than computing them, so the differences are of overhead, not of bytes.\n",
        f"| model | {' | '.join(forms)} |",
        "|---|" + "---:|" * len(forms),
    ]
    for name, measured in record["generate"].items():
        cells = [f"{measured['tokens_per_second'][form]:.0f}{_noisy_mark(measured['spread'][form])}" for form in forms]
        lines.append(f"| {name}, {measured['dtype']} | {' | '.join(cells)} |")
    lines.append("\nMilliseconds for one input times one matrix that is larger than the caches:\n")
    lines += [f"| matrix | {' | '.join(forms)} |", "|---|" + "---:|" * len(forms)]
    for measured in record["products"]:
        cells = [f"{measured['milliseconds'][form]:.2f}{_noisy_mark(measured['spread'][form])}" for form in forms]
        shape = " x ".join(map(str, measured["shape"]))
        lines.append(f"| {shape}, {measured['dtype']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _noisy_mark(spread: float) -> str:
    return "?" if spread > 0.1 else ""


def _environment(record: dict[str, Any]) -> str:
    hardware = record["hardware"]
    versions = record["versions"]
    generate = list(record["generate"].values())
    loads = [measured["load"][0][0] for measured in (*generate, *record["products"]) if measured["load"][0]]
    load = f", load {min(loads)} to {max(loads)}" if loads else ""
    seeds = ", ".join(map(str, record["protocol"]["seeds"]))
    return (
        f"torch {versions['torch']}, transformers {versions['transformers']}; {hardware['processor']}, "
        f"{hardware['cpus']} cores, {generate[0]['threads']} thread, kernels for {hardware['tier']}{load}. "
        f"Seeds: {seeds}.\n"
    )
