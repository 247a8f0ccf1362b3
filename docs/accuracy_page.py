"""The page docs/accuracy.md and README's table of shares, from docs/results/accuracy.json."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from eggs_ptp.method.catalogue import METHODS

Rows = list[dict[str, Any]]  # of one method, one a seed
Table = dict[str, Rows]

RECORD = Path(__file__).parent / "results" / "accuracy.json"
_REFERENCE = "sparsegpt"
_JUDGED = 0.2  # excess of SparseGPT below which there is too little to share out
_PRESETS = {
    "eggs+": "no gradients",
    "eggs-max": "blocks tuned by gradients",
}
_ACCURACY = """# Accuracy

<!-- Written by docs/make_pages.py from docs/results/accuracy.json. -->

Every method and tool here has pruned the same models with the very same calibration windows ({nsamples} of {seqlen} tokens,
drawn anew for each seed), and one evaluator has judged the folders on other text, in packed windows as long.

- *perplexity*: mean and standard deviation (sd) over the seeds.
- *excess*: ln(perplexity / dense), the mean.
- *share*: the excess as a share of SparseGPT's (ours) with the same seed, mean and sd. Below 1 is better than SparseGPT.
- *seconds*: wall clock and processor time of pruning alone, medians over the seeds. Other work ran beside it on
  the same machine, so the wall clock tells little.
- A name with a tool before it is that tool's own code in an environment of its own; all others are this project's.

- *small* is a sibling of the built-in model (*demo*): `python training/train_demo.py --steps 3000 --hidden 64
  --intermediate 128 --layers 5 --heads 4 --out build/small`. No preset was tuned on it.

Rows are sorted from most excess to least.
"""


def accuracy() -> str:
    """Tables of the accuracy record, and what can be read off the rows that it has."""
    record = _accuracy_record()
    tables = tables_of(record)
    lengths = " or ".join(str(length) for length in sorted({facts["seqlen"] for facts in record["models"].values()}))
    parts = [_ACCURACY.format(nsamples=record["protocol"]["nsamples"], seqlen=lengths)]
    for (model, pattern), table in tables.items():
        facts = record["models"][model]
        dense = f"{facts['dense']:.2f} on {facts['targets']} tokens"
        parts.append(f"## {model}, {pattern}\n\nDense: {dense} of {_text(facts, 'evaluation')}; calibrated on")
        parts[-1] += f" {_text(facts, 'calibration')}.\n\n" + table_text(table, record)
        if _REFERENCE in table and _mean(table[_REFERENCE]) < _JUDGED:
            parts[-1] += "\nSparseGPT's excess is so small here that shares of it say little.\n"
        for fault in dict.fromkeys(f"{m}: {fault}" for m, rows in table.items() for r in rows for fault in r["faults"]):
            parts[-1] += f"\n`eggs verify` finds in {fault}.\n"
    parts.append("## What beats what\n\n" + _reading(tables, record))
    parts.append("## How it was made\n\n" + made_by(record))
    return "\n".join(parts)


def _accuracy_record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def tables_of(record: dict[str, Any]) -> dict[tuple[str, str], Table]:
    """Rows by model and pattern, then by method."""
    tables: dict[tuple[str, str], Table] = {}
    for row in sorted(record["rows"], key=lambda row: (list(record["models"]).index(row["model"]), row["pattern"])):
        tables.setdefault((row["model"], row["pattern"]), {}).setdefault(row["method"], []).append(row)
    return tables


def _text(facts: dict[str, Any], which: str) -> str:
    return "its own text" if facts[which] == "builtin" else f"`{facts[which]}`"


def _mean(rows: Rows, key: str = "excess") -> float:
    return float(statistics.mean(row[key] for row in rows))


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""


def _outdated(rows: Rows, record: dict[str, Any]) -> bool:
    """Whether the method of that name has other steps or options today than when the rows were made."""
    name = rows[0]["method"]
    if name not in METHODS:
        return False
    now = json.loads(json.dumps(METHODS[name].to_dict()["steps"]))
    return any(record["settings"][row["settings"]].get("steps") != now for row in rows)


def table_text(table: Table, record: dict[str, Any]) -> str:
    lines = ["| method | perplexity | sd | excess | share | sd | seconds | processor | seeds |", "|---|" + "--:|" * 8]
    outdated = False
    for method, rows in sorted(table.items(), key=lambda pair: -_mean(pair[1])):
        old = _outdated(rows, record)
        outdated |= old
        times = [f"{statistics.median(row[key] for row in rows):.1f}" for key in ("seconds", "cpu_seconds")]
        perplexities, shared = [row["perplexity"] for row in rows], _shares(table, method)
        cells = [f"{_mean(rows, 'perplexity'):.2f}", _spread(perplexities, 2), f"{_mean(rows):.3f}"]
        cells += [f"{statistics.mean(shared):.3f}" if shared else "", _spread(shared, 3), *times, str(len(rows))]
        lines.append(f"| {method}{' †' if old else ''} | {' | '.join(cells)} |")
    note = "\n† Made with other settings than the method has today; kept out of what follows.\n" if outdated else ""
    return "\n".join(lines) + "\n" + note


def _shares(table: Table, method: str) -> list[float]:
    reference = {row["seed"]: row["excess"] for row in table.get(_REFERENCE, [])}
    return [row["excess"] / reference[row["seed"]] for row in table[method] if row["seed"] in reference]


def _reading(tables: dict[tuple[str, str], Table], record: dict[str, Any]) -> str:
    """What the rows say; of methods and tools that have none, nothing is said."""
    current = {
        place: {method: rows for method, rows in table.items() if not _outdated(rows, record)}
        for place, table in tables.items()
    }
    parts = [_against_others(current), _findings(current)]
    missing = [f"`{name}` ({reason})" for name, reason in record["not_run"].items()]
    if missing:
        parts.append(f"Not run: {'; '.join(missing)}.\n")
    return "\n".join(part for part in parts if part)


def _against_others(tables: dict[tuple[str, str], Table]) -> str:
    """Each preset beside the best of everything else, seed by seed."""
    lines, wins = [], {preset: [0, 0, 0] for preset in _PRESETS}
    for (model, pattern), table in tables.items():
        # A variant of a preset, as in an ablation, is none of the others.
        others = {name: rows for name, rows in table.items() if not name.startswith(tuple(_PRESETS))}
        for preset in _PRESETS:
            if preset not in table or not others:
                continue
            best = min(others, key=lambda name: _mean(others[name]))
            found = _difference(table[preset], others[best])
            if not found:
                continue
            mean, spread = statistics.mean(found), _spread(found, 3)
            beyond = len(found) > 1 and abs(mean) > 2 * statistics.stdev(found)
            for place, counts in enumerate((True, mean < 0, mean < 0 and beyond)):
                wins[preset][place] += counts
            shared = _shares(table, preset)
            share = f"{statistics.mean(shared):.3f}" if shared else ""
            verdict = "better" if mean < 0 else "worse"
            verdict += ", by more than seed noise" if beyond else ", within seed noise" if spread else ", one seed"
            apart = f"{mean:+.3f}{spread and f' ± {spread}'}"
            lines.append(f"| {model}, {pattern} | {preset} | {share} | {best} | {apart} | {verdict} |")
    if not lines:
        return ""
    head = [
        "Each preset beside the best of all that is no preset of this kind, other tools included; the difference of the",
        "excess is taken seed by seed, and called more than seed noise where its mean is more than twice its standard",
        "deviation.\n",
        "| | preset | share | best of the others | difference of the excess | |",
        "|---|---|--:|---|--:|---|",
    ]
    said = [
        f"- `{preset}` ({what}) has less excess than every other in {won} of {ran} tables, by more than seed noise in "
        f"{clearly}."
        for preset, what in _PRESETS.items()
        for ran, won, clearly in (wins[preset],)
        if ran
    ]
    return "\n".join([*head, *lines, "", *said]) + "\n"


def _difference(mine: Rows, other: Rows) -> list[float]:
    by_seed = {row["seed"]: row["excess"] for row in other}
    return [row["excess"] - by_seed[row["seed"]] for row in mine if row["seed"] in by_seed]


def _findings(tables: dict[tuple[str, str], Table]) -> str:
    said = []
    twins = {"sparsegpt": "llmcompressor sparsegpt", "wanda": "llmcompressor wanda"}
    for ours, theirs in twins.items():
        apart = [
            abs(math.expm1(difference))
            for table in tables.values()
            if ours in table and theirs in table
            for difference in _difference(table[ours], table[theirs])
        ]
        if apart:
            said.append(
                f"- Our `{ours}` and llm-compressor's agree: over {len(apart)} pairs of runs their perplexities are at most "
                f"{max(apart):.2%} apart."
            )
    if any("modelopt sparsegpt" in table for table in tables.values()):
        said.append(
            "- ModelOpt's `sparsegpt` applies the mask that its sweep finds and leaves the kept weights at their dense "
            "values, which is why it is behind SparseGPT."
        )
    found = [statistics.mean(_shares(table, "eggs")) for table in tables.values() if "eggs" in table]
    if found and min(found) > 1:
        said.append(
            f"- `eggs`, EGGS-PTP with kept weights left as they were, has {min(found):.2f} to {max(found):.2f} times "
            "SparseGPT's excess: what the weights can make up for is worth more than which of them are kept."
        )
    return "\n".join(said) + "\n" if said else ""


def made_by(record: dict[str, Any]) -> str:
    used = {key: sorted({row[key] for row in record["rows"]}) for key in ("environment", "command")}
    lines = ["```", *(record["commands"][command] for command in used["command"]), "```", ""]
    for place in used["environment"]:
        found = record["environments"][place]
        lines.append(f"- {', '.join(f'{name} {version}' for name, version in found.items())}")
    return "\n".join(lines) + "\n"


def shares() -> str:
    """README's table: shares of SparseGPT's excess by method and pattern, over all models."""
    record = _accuracy_record()
    tables = {
        place: table
        for place, table in tables_of(record).items()
        if _REFERENCE in table and _mean(table[_REFERENCE]) >= _JUDGED
    }
    patterns = list(dict.fromkeys(pattern for _, pattern in tables))
    found: dict[str, dict[str, list[float]]] = {}
    for (_, pattern), table in tables.items():
        for method, rows in table.items():
            if (method in METHODS or rows[0]["tool"] != "eggs-ptp") and not _outdated(rows, record):
                found.setdefault(method, {}).setdefault(pattern, []).append(statistics.mean(_shares(table, method)))
    lines = [f"| | {' | '.join(patterns)} |", "|---|" + "--:|" * len(patterns)]
    for method in sorted(found, key=lambda method: -max(max(values) for values in found[method].values())):
        cells = [_range(found[method].get(pattern, [])) for pattern in patterns]
        lines.append(f"| {f'`{method}`' if method in METHODS else method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(values: list[float]) -> str:
    if not values:
        return "-"
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
