"""The page docs/accuracy.md and the table of shares in README.md, from docs/results/accuracy.json."""

import json
import math
import shlex
import statistics
from pathlib import Path
from typing import Any

from eggs_ptp.method.aliases import current_key, with_current_names
from eggs_ptp.method.catalogue import METHODS
from eggs_ptp.method.recorded import with_later_options

Rows = list[dict[str, Any]]  # of one method, one row per seed
Table = dict[str, Rows]  # by method
Tables = dict[tuple[str, str], Table]  # by model and pattern

RECORD = Path(__file__).parents[2] / "docs" / "results" / "accuracy.json"
_REFERENCE = "sparsegpt"
_LEAST_REFERENCE_EXCESS = 0.2  # below it, shares of SparseGPT's excess say little
_PRESETS = {"eggs+": "no gradients", "eggs-max": "blocks tuned by gradients"}
_REQUIRED = ("eggs", *_PRESETS)  # methods that must have current rows
_HEAD = """# Accuracy

<!-- Written by tools/docs/make_pages.py from docs/results/accuracy.json. -->

Every method and tool on this page pruned the same models with the same calibration windows ({nsamples} of {seqlen} tokens,
a new sample for each seed), and one evaluator measured the perplexity of all pruned folders on other text, in packed
windows of the same length.

- *perplexity*: mean and standard deviation (sd) over the seeds.
- *excess*: ln(perplexity / dense perplexity), mean over the seeds.
- *share*: the excess as a share of that of this project's SparseGPT with the same seed, mean and sd. Below 1 is better
  than SparseGPT.
- *seconds*: wall-clock and processor time of pruning alone, medians over the seeds. The machine was running other work at
  the same time, so the wall-clock time is not very informative.
- A name that starts with another tool is that tool's own code, in its own environment; all others are this project's.
- *small* is a sibling of the built-in model (*demo*): `python training/train_demo.py --steps 3000 --hidden 64
  --intermediate 128 --layers 5 --heads 4 --out build/small`. No preset was tuned on it.

Rows are sorted by excess, highest first.
"""


class OutdatedRecordError(Exception):
    """The record has no rows of a preset, or rows made with settings that the preset does not have today."""


def accuracy() -> str:
    """Return the page: tables of all rows, and comparisons of those that are current.

    Raises:
        OutdatedRecordError: A preset of this project has no current rows.
    """
    record = _read_record()
    tables = tables_of(record)
    _check_presets(tables, record)
    lengths = sorted({model["seqlen"] for model in record["models"].values()})
    parts = [_HEAD.format(nsamples=record["protocol"]["nsamples"], seqlen=" or ".join(map(str, lengths)))]
    for (model_name, pattern), table in tables.items():
        model = record["models"][model_name]
        evaluation = _text_name(model, "evaluation")
        calibration = _text_name(model, "calibration")
        parts.append(
            f"## {model_name}, {pattern}\n\nDense: {model['dense']:.2f} on {model['targets']} tokens of {evaluation}; "
            f"calibrated on {calibration}.\n\n{table_text(table, record)}"
        )
        if _REFERENCE in table and _mean(table[_REFERENCE]) < _LEAST_REFERENCE_EXCESS:
            parts[-1] += "\nSparseGPT's excess is so small here that shares of it say little.\n"
        failures = [
            f"{method}: {failure}" for method, rows in table.items() for row in rows for failure in row["faults"]
        ]
        for failure in dict.fromkeys(failures):
            parts[-1] += f"\n`eggs verify` reports for {failure}.\n"
    parts.append("## Comparison\n\n" + _comparison(tables, record))
    parts.append("## How it was measured\n\n" + provenance(record))
    return "\n".join(parts)


def shares() -> str:
    """Return README's table: the share of SparseGPT's excess by method and pattern, as a range over the models.

    Raises:
        OutdatedRecordError: A preset of this project has no current rows.
    """
    record = _read_record()
    tables = tables_of(record)
    _check_presets(tables, record)
    shown = {
        key: table
        for key, table in tables.items()
        if _REFERENCE in table and _mean(table[_REFERENCE]) >= _LEAST_REFERENCE_EXCESS
    }
    patterns = list(dict.fromkeys(pattern for _, pattern in shown))
    by_method: dict[str, dict[str, list[float]]] = {}
    for (_, pattern), table in shown.items():
        for method, rows in table.items():
            is_plain = method in METHODS or rows[0]["tool"] != "eggs-ptp"
            if is_plain and not _is_outdated(rows, record):
                share = statistics.mean(_shares(table, method))
                by_method.setdefault(method, {}).setdefault(pattern, []).append(share)
    lines = [f"| | {' | '.join(patterns)} |", "|---|" + "--:|" * len(patterns)]
    for method in sorted(by_method, key=lambda method: -max(map(max, by_method[method].values()))):
        name = f"`{method}`" if method in METHODS else method
        cells = [_range(by_method[method].get(pattern, [])) for pattern in patterns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _read_record() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def tables_of(record: dict[str, Any]) -> Tables:
    """Return the rows by model and pattern, then by method, with today's names of settings."""
    models = list(record["models"])
    tables: Tables = {}
    for row in sorted(record["rows"], key=lambda row: (models.index(row["model"]), row["pattern"])):
        table = tables.setdefault((row["model"], row["pattern"]), {})
        table.setdefault(_current_label(row["method"]), []).append(row)
    return tables


def _current_label(label: str) -> str:
    """Return a method's label, such as `eggs permutation=gather`, with today's names of settings."""
    words = []
    for word in label.split(" "):
        key, equals, value = word.partition("=")
        words.append(f"{current_key(key, {}, quiet=True)}={value}" if equals else word)
    return " ".join(words)


def _is_outdated(rows: Rows, record: dict[str, Any]) -> bool:
    """Return whether the method with this name has other steps or options today."""
    method = rows[0]["method"]
    if method not in METHODS:
        return False
    steps = json.loads(json.dumps(METHODS[method].to_dict()["steps"]))
    recorded = (record["settings"][row["settings"]] for row in rows)
    named = (with_current_names(settings, quiet=True).get("steps", {}) for settings in recorded)
    return any(with_later_options(recorded_steps) != steps for recorded_steps in named)


def _check_presets(tables: Tables, record: dict[str, Any]) -> None:
    """Refuse a record in which a preset of this project has no current rows for a model and pattern."""
    for (model, pattern), table in tables.items():
        for method in _REQUIRED:
            if method in table and not _is_outdated(table[method], record):
                continue
            fault = "rows made with settings that it does not have today" if method in table else "no rows"
            raise OutdatedRecordError(
                f"{RECORD.name}: expected current rows of {method} for model {model} at {pattern}, found {fault}; run "
                f"{_command(method, model, pattern, record, table)}"
            )


def _command(method: str, model_name: str, pattern: str, record: dict[str, Any], table: Table) -> str:
    """Return the command that adds the rows of a method to the record."""
    model = record["models"][model_name]
    words = ["python", "benchmarks/accuracy.py", "--model", model_name]
    if model_name != "demo":
        words += [model["calibration"], model["evaluation"]]
        words += [str(model["evaluation_windows"])] if model.get("evaluation_windows") else []
    seeds = sorted({row["seed"] for rows in table.values() for row in rows})
    words += ["--patterns", pattern, "--seeds", *map(str, seeds), "--methods", method]
    return shlex.join([*words, "--record", f"docs/results/{RECORD.name}"])


def _text_name(model: dict[str, Any], which: str) -> str:
    return "its own text" if model[which] == "builtin" else f"`{model[which]}`"


def _mean(rows: Rows, key: str = "excess") -> float:
    return float(statistics.mean(row[key] for row in rows))


def _deviation(values: list[float], digits: int) -> str:
    return f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""


def table_text(table: Table, record: dict[str, Any]) -> str:
    """Return the table of one model and pattern, highest excess first."""
    lines = ["| method | perplexity | sd | excess | share | sd | seconds | processor | seeds |", "|---|" + "--:|" * 8]
    any_outdated = False
    for method, rows in sorted(table.items(), key=lambda item: -_mean(item[1])):
        outdated = _is_outdated(rows, record)
        any_outdated |= outdated
        method_shares = _shares(table, method)
        cells = [
            f"{_mean(rows, 'perplexity'):.2f}",
            _deviation([row["perplexity"] for row in rows], 2),
            f"{_mean(rows):.3f}",
            f"{statistics.mean(method_shares):.3f}" if method_shares else "",
            _deviation(method_shares, 3),
            f"{statistics.median(row['seconds'] for row in rows):.1f}",
            f"{statistics.median(row['cpu_seconds'] for row in rows):.1f}",
            str(len(rows)),
        ]
        lines.append(f"| {method}{' †' if outdated else ''} | {' | '.join(cells)} |")
    note = "\n† Made with settings that the method does not have today; not compared below.\n" if any_outdated else ""
    return "\n".join(lines) + "\n" + note


def _shares(table: Table, method: str) -> list[float]:
    reference = {row["seed"]: row["excess"] for row in table.get(_REFERENCE, [])}
    return [row["excess"] / reference[row["seed"]] for row in table[method] if row["seed"] in reference]


def _comparison(tables: Tables, record: dict[str, Any]) -> str:
    """Compare the methods that have current rows."""
    current = {
        key: {method: rows for method, rows in table.items() if not _is_outdated(rows, record)}
        for key, table in tables.items()
    }
    parts = [_presets_against_others(current), _findings(current)]
    not_run = [f"`{name}` ({reason})" for name, reason in record["not_run"].items()]
    if not_run:
        parts.append(f"Not run: {'; '.join(not_run)}.\n")
    return "\n".join(part for part in parts if part)


def _presets_against_others(tables: Tables) -> str:
    """Compare each preset with the best other method, seed by seed."""
    lines = []
    counts = {preset: {"tables": 0, "better": 0, "clearly": 0} for preset in _PRESETS}
    for (model, pattern), table in tables.items():
        # A variant of a preset, as in an ablation, is not another method.
        others = {method: rows for method, rows in table.items() if not method.startswith(tuple(_PRESETS))}
        for preset in _PRESETS:
            if preset not in table or not others:
                continue
            best = min(others, key=lambda method: _mean(others[method]))
            differences = _differences(table[preset], others[best])
            if not differences:
                continue
            mean = statistics.mean(differences)
            deviation = _deviation(differences, 3)
            is_clear = len(differences) > 1 and abs(mean) > 2 * statistics.stdev(differences)
            counts[preset]["tables"] += 1
            counts[preset]["better"] += mean < 0
            counts[preset]["clearly"] += mean < 0 and is_clear
            preset_shares = _shares(table, preset)
            share = f"{statistics.mean(preset_shares):.3f}" if preset_shares else ""
            noise = "by more than seed noise" if is_clear else "within seed noise" if deviation else "one seed"
            verdict = f"{'better' if mean < 0 else 'worse'}, {noise}"
            difference = f"{mean:+.3f}{deviation and f' ± {deviation}'}"
            lines.append(f"| {model}, {pattern} | {preset} | {share} | {best} | {difference} | {verdict} |")
    if not lines:
        return ""
    head = [
        "Each preset against the best method that is not a preset, other tools included. The difference of the excess is",
        "taken seed by seed; it is called more than seed noise if its mean exceeds twice its standard deviation.\n",
        "| | preset | share | best other | difference of the excess | |",
        "|---|---|--:|---|--:|---|",
    ]
    sentences = [
        f"- `{preset}` ({_PRESETS[preset]}) has a lower excess than every other method in {count['better']} of "
        f"{count['tables']} tables, by more than seed noise in {count['clearly']}."
        for preset, count in counts.items()
        if count["tables"]
    ]
    return "\n".join([*head, *lines, "", *sentences]) + "\n"


def _differences(rows: Rows, other_rows: Rows) -> list[float]:
    by_seed = {row["seed"]: row["excess"] for row in other_rows}
    return [row["excess"] - by_seed[row["seed"]] for row in rows if row["seed"] in by_seed]


def _findings(tables: Tables) -> str:
    findings = []
    for method in ("sparsegpt", "wanda"):
        peer = f"llmcompressor {method}"
        relative = [
            abs(math.expm1(difference))
            for table in tables.values()
            if method in table and peer in table
            for difference in _differences(table[method], table[peer])
        ]
        if relative:
            findings.append(
                f"- `{method}` here and in llm-compressor agree: over {len(relative)} pairs of runs their perplexities "
                f"differ by at most {max(relative):.2%}."
            )
    if any("modelopt sparsegpt" in table for table in tables.values()):
        findings.append(
            "- ModelOpt's `sparsegpt` applies the mask that its sweep finds, but leaves the kept weights at their dense "
            "values, so it is worse than SparseGPT."
        )
    with_both = [table for table in tables.values() if "eggs" in table and _REFERENCE in table]
    eggs_shares = [statistics.mean(_shares(table, "eggs")) for table in with_both]
    if eggs_shares and min(eggs_shares) > 1:
        findings.append(
            f"- `eggs`, EGGS-PTP with unchanged kept weights, has {min(eggs_shares):.2f} to {max(eggs_shares):.2f} times "
            "SparseGPT's excess: updating the kept weights is worth more than the choice of which weights are kept."
        )
    return "\n".join(findings) + "\n" if findings else ""


def provenance(record: dict[str, Any]) -> str:
    """Return the commands and environments of all rows."""
    commands = sorted({row["command"] for row in record["rows"]})
    environments = sorted({row["environment"] for row in record["rows"]})
    lines = ["```", *(record["commands"][index] for index in commands), "```", ""]
    for index in environments:
        versions = record["environments"][index]
        lines.append(f"- {', '.join(f'{name} {version}' for name, version in versions.items())}")
    return "\n".join(lines) + "\n"


def _range(values: list[float]) -> str:
    if not values:
        return "-"
    low = f"{min(values):.2f}"
    high = f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
