"""The page docs/findings/connectivity.md, from docs/results/connectivity.json."""

import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_page import made_by

Rows = list[dict[str, Any]]
Place = tuple[str, str, bool]  # model, pattern, whether kept weights were solved for

RECORD = Path(__file__).parent / "results" / "connectivity.json"
_TREATMENT = {False: "kept weights as they were (`eggs`)", True: "kept weights solved for (`ria_cp+connect+pcg`)"}
_FIGURES = {
    "least_degree": "least connections of an input, worst matrix",
    "mean_least_degree": "the same, mean over matrices",
    "least_share": "least connections as a share of the outputs, mean",
    "dead_inputs": "dead inputs",
    "gini": "Gini of the inputs' degrees, mean",
    "sigma2_over_edge": "sigma2 / edge of random N:M masks, mean",
    "output_error": "output error, mean",
}
_HEAD = """# Does connectivity help?

<!-- Written by docs/make_pages.py from docs/results/connectivity.json. -->

EGGS-PTP makes its masks better connected: in B blocks of every group of M inputs the diagonals are kept whatever the
scores say, so that every input keeps at least B connections (Lemma 1). Here B goes from none to all, with three kinds
of diagonals, once with kept weights as they were and once solved for after pruning. Each folder is evaluated as in
[accuracy](../accuracy.md) and looked at by `eggs diagnose --spectra` ([what the figures are](../diagnose.md)).
"""
_READING = """
Every matrix is pruned with one order per activation, gathered (`orders = "gather"`), so that B and kind are all that
differs. *best* are the doubly regular blocks that cost least, *circulant* and *staircase* are fixed bands. Where B blocks
of M rows do not fit, all rows are blocks. Lower excess, ln(perplexity / dense), is better; sd over the seeds where
there are several.
"""


def connectivity() -> str:
    """What the record says, its tables, and how it was made."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    groups: dict[Place, Rows] = {}
    for row in record["rows"]:
        groups.setdefault((row["model"], row["pattern"], row["solved"]), []).append(row)
    parts = [_HEAD, "## What the runs say\n", *_findings(groups, record["correlations"]), _READING]
    for place, rows in groups.items():
        dense = record["models"][place[0]]["dense"]
        parts += [f"## {place[0]}, {place[1]}, {_TREATMENT[place[2]]}\n", f"Dense: {dense:.2f}.\n", _table(rows)]
    parts += ["## Correlations\n", _CORRELATIONS, _correlations(record["correlations"])]
    return "\n".join([*parts, "## How it was made\n", made_by(record)])


_CORRELATIONS = """Spearman's rho of each figure with the excess, over all runs of a model and treatment; *held fixed*: the partial rho
given the rank of the output error. In brackets 95 % intervals by bootstrap over the settings, 2000 resamples. B and kind
were set, not drawn, so an interval says how much a rho hangs on single settings, and no more. A rho above 0: what has
more of it is worse.
"""


def _excess(rows: Rows) -> float:
    return statistics.mean(row["excess"] for row in rows)


def _settings(rows: Rows) -> dict[tuple[int, str], Rows]:
    found: dict[tuple[int, str], Rows] = {}
    for row in sorted(rows, key=lambda row: (row["B"], row["kind"])):
        found.setdefault((row["B"], "-" if row["B"] == 0 else row["kind"]), []).append(row)
    return found


def _findings(groups: dict[Place, Rows], correlations: Rows) -> list[str]:
    said = [_short(correlations)] if correlations else []
    said += [line for place, rows in groups.items() for line in _best(place, _settings(rows))]
    for figure in ("least_share", "sigma2_over_edge", "output_error"):
        of_figure = [found for found in correlations if found["figure"] == figure]
        if of_figure:
            said.append(_sign(figure, of_figure))
    edges = [row["graph"]["sigma2_over_edge"] for rows in groups.values() for row in rows if row["kind"] == "best"]
    if edges:
        said.append(
            f"- The spectrum hardly moves: with the blocks that cost least, sigma2 is {min(edges):.2f} to {max(edges):.2f} "
            "times that of random N:M masks from no blocks to nothing but blocks. Fixed bands raise it, as they repeat."
        )
    dead = [row["graph"]["dead_inputs"] for rows in groups.values() for row in rows if row["B"] == 0]
    if dead:
        inputs = f"at most {max(dead)} input{'s' * (max(dead) != 1)} of the model" if max(dead) else "no input"
        said.append(
            f"- Without blocks {inputs} is dead on these models: what the floor protects from hardly happens here, so "
            "that it could help where it does (larger models, outlier channels, higher sparsity) is not tested."
        )
    return [*said, ""]


def _short(correlations: Rows) -> str:
    """The answer in one sentence, as far as the figures give one."""
    floors = [found for found in correlations if found["figure"] == "least_share"]
    worse = sum(found["interval"][0] > 0 for found in floors)
    helps = sum(found.get("partial_interval", [0, 0])[1] < 0 for found in floors)
    return (
        f"**In short:** over the whole range of B, better connected masks are clearly worse in {worse} of {len(floors)} "
        f"groups of runs, because they lose more output; with the output error held fixed, connections clearly help in "
        f"{helps}.\n"
    )


def _best(place: Place, settings: dict[tuple[int, str], Rows]) -> list[str]:
    without = settings.pop((0, "-"), None)
    if not without or not settings:
        return []
    (blocks, kind), rows = min(settings.items(), key=lambda pair: _excess(pair[1]))
    before = {row["seed"]: row["excess"] for row in without}
    apart = [row["excess"] - before[row["seed"]] for row in rows if row["seed"] in before]
    spread = f" ± {statistics.stdev(apart):.3f} over {len(apart)} seeds" if len(apart) > 1 else " (one seed)"
    most = max(settings)[0]
    cost = min(_excess(found) for (number, _), found in settings.items() if number == most)
    return [
        f"- {place[0]}, {_TREATMENT[place[2]]}: without blocks the excess is {_excess(without):.3f}; the best of the "
        f"{len(settings)} settings with some, picked afterwards, is B = {blocks} {kind}, {statistics.mean(apart):+.3f}"
        f"{spread}; with B = {most} the best kind has {cost - _excess(without):+.3f}."
    ]


def _sign(figure: str, found: Rows) -> str:
    values = [one["rho"] for one in found]
    text = f"- {_FIGURES[figure][0].upper()}{_FIGURES[figure][1:]}: rho {min(values):+.2f} to {max(values):+.2f}"
    partial = [one for one in found if "partial" in one]
    if partial:
        helps = sum(one["partial_interval"][1] < 0 for one in partial)
        harms = sum(one["partial_interval"][0] > 0 for one in partial)
        values = [one["partial"] for one in partial]
        text += (
            f"; with the output error held fixed {min(values):+.2f} to {max(values):+.2f}, clearly below 0 (helps) in "
            f"{helps} and clearly above 0 (harms) in {harms} of {len(partial)} groups of runs"
        )
    return f"{text}."


def _table(rows: Rows) -> str:
    heads = [
        "B",
        "blocks",
        "perplexity",
        "excess",
        "sd",
        "least",
        "least, mean",
        "dead",
        "Gini",
        "sigma2 / edge",
        "error",
    ]
    lines = [f"| {' | '.join(heads)} |", "|--:|---|" + "--:|" * (len(heads) - 2)]
    for (blocks, kind), found in _settings(rows).items():
        mean = {name: statistics.mean(row["graph"][name] for row in found) for name in found[0]["graph"]}
        spread = f"{statistics.stdev(row['excess'] for row in found):.3f}" if len(found) > 1 else ""
        cells = [
            f"{blocks}",
            kind,
            f"{statistics.mean(row['perplexity'] for row in found):.2f}",
            f"{_excess(found):.3f}",
        ]
        cells += [
            spread,
            f"{mean['least_degree']:.0f}",
            f"{mean['mean_least_degree']:.1f}",
            f"{mean['dead_inputs']:.1f}",
        ]
        cells += [f"{mean['gini']:.3f}", f"{mean['sigma2_over_edge']:.3f}", f"{mean['output_error']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _correlations(found: Rows) -> str:
    lines = ["| model | kept weights | figure | rho | held fixed | runs |", "|---|---|---|---|---|--:|"]
    for one in found:
        cells = [one["model"], "solved for" if one["solved"] else "as they were", _FIGURES[one["figure"]]]
        cells += [with_interval(one, "rho", "interval"), with_interval(one, "partial", "partial_interval")]
        lines.append(f"| {' | '.join([*cells, str(one['runs'])])} |")
    return "\n".join(lines) + "\n"


def with_interval(found: dict[str, Any], value: str, interval: str) -> str:
    """A correlation and its interval; nothing where there is none."""
    if value not in found:
        return ""
    low, high = found[interval]
    return f"{found[value]:+.2f} [{low:+.2f}, {high:+.2f}]"
