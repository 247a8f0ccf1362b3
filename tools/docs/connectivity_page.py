"""The page docs/findings/connectivity.md, from docs/results/connectivity.json."""

import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_page import provenance

Rows = list[dict[str, Any]]
GroupKey = tuple[str, str, bool]  # model, pattern, whether kept weights were solved for
Settings = dict[tuple[int, str], Rows]  # by B and kind of diagonal

RECORD = Path(__file__).parents[2] / "docs" / "results" / "connectivity.json"
_KEPT_WEIGHTS = {False: "kept weights unchanged (`eggs`)", True: "kept weights solved for (`ria_cp+connect+pcg`)"}
METRICS = {
    "least_degree": "fewest connections of an input, worst matrix",
    "mean_least_degree": "the same, mean over matrices",
    "least_share": "fewest connections as a share of the outputs, mean",
    "dead_inputs": "dead inputs",
    "gini": "Gini coefficient of the input degrees, mean",
    "sigma2_over_edge": "sigma2 / that of random N:M masks, mean",
    "output_error": "output error, mean",
}
_HEAD = """# Does connectivity help?

<!-- Written by tools/docs/make_pages.py from docs/results/connectivity.json. -->

EGGS-PTP makes its masks better connected: in B blocks of every group of M inputs the diagonals are kept whatever the scores
say, so that every input keeps at least B connections (Lemma 1). Here B goes from none to all, with three kinds of diagonals,
once with kept weights unchanged and once solved for after pruning. Each folder is evaluated as in
[accuracy](../accuracy.md), and its graph is measured by `eggs diagnose --spectra` ([what the metrics are](../diagnose.md)).
"""
_READING = """
Every matrix is pruned with one permutation per activation, gathered (`permutation = "gather"`), so that only B and kind
differ. *best* are the doubly regular blocks that cost least score, *circulant* and *staircase* are fixed bands. Where fewer
than B blocks of M rows fit, all rows belong to blocks. Lower excess, ln(perplexity / dense perplexity), is better; sd over
the seeds if there are several.
"""
_CORRELATIONS = """Spearman's rho between each metric and the excess, over all runs of a model and treatment of the weights; *held fixed*: the
partial rho given the rank of the output error. In brackets 95 % intervals by bootstrap over the settings, 2000 resamples. B
and kind were set, not sampled, so an interval only says how much a rho depends on single settings. A rho above 0: more of it
is worse.
"""


def connectivity() -> str:
    """Return the findings, the tables, and how they were measured."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    groups: dict[GroupKey, Rows] = {}
    for row in record["rows"]:
        groups.setdefault((row["model"], row["pattern"], row["solved"]), []).append(row)
    parts = [_HEAD, "## Findings\n", *_findings(groups, record["correlations"]), _READING]
    for (model, pattern, solved), rows in groups.items():
        dense = record["models"][model]["dense"]
        parts += [f"## {model}, {pattern}, {_KEPT_WEIGHTS[solved]}\n", f"Dense: {dense:.2f}.\n", _table(rows)]
    parts += ["## Correlations\n", _CORRELATIONS, _correlations(record["correlations"])]
    return "\n".join([*parts, "## How it was measured\n", provenance(record)])


def _mean_excess(rows: Rows) -> float:
    return statistics.mean(row["excess"] for row in rows)


def _by_setting(rows: Rows) -> Settings:
    settings: Settings = {}
    for row in sorted(rows, key=lambda row: (row["B"], row["kind"])):
        settings.setdefault((row["B"], "-" if row["B"] == 0 else row["kind"]), []).append(row)
    return settings


def _findings(groups: dict[GroupKey, Rows], correlations: Rows) -> list[str]:
    findings = [_answer(correlations)] if correlations else []
    for key, rows in groups.items():
        findings += _best_setting(key, _by_setting(rows))
    for metric in ("least_share", "sigma2_over_edge", "output_error"):
        of_metric = [row for row in correlations if row["figure"] == metric]
        if of_metric:
            findings.append(_correlation_sentence(metric, of_metric))
    all_rows = [row for rows in groups.values() for row in rows]
    edges = [row["graph"]["sigma2_over_edge"] for row in all_rows if row["kind"] == "best"]
    if edges:
        findings.append(
            "- The spectrum hardly changes: with the blocks that cost least, sigma2 is "
            f"{min(edges):.2f} to {max(edges):.2f} times that of random N:M masks, from no blocks to nothing but blocks. "
            "Fixed bands raise it, because they repeat."
        )
    dead = [row["graph"]["dead_inputs"] for row in all_rows if row["B"] == 0]
    if dead:
        inputs = f"at most {max(dead)} input{'s' * (max(dead) != 1)} of the model" if max(dead) else "no input"
        findings.append(
            f"- Without blocks {inputs} is dead on these models: what the floor protects from hardly happens here. Whether "
            "it helps where it does happen (larger models, outlier channels, higher sparsity) was not tested."
        )
    return [*findings, ""]


def _answer(correlations: Rows) -> str:
    """The answer in one sentence."""
    floors = [row for row in correlations if row["figure"] == "least_share"]
    worse = sum(row["interval"][0] > 0 for row in floors)
    helps = sum(row.get("partial_interval", [0, 0])[1] < 0 for row in floors)
    return (
        f"**In short:** over the whole range of B, better connected masks are clearly worse in {worse} of {len(floors)} "
        "groups of runs, because their output error is larger; with the output error held fixed, connections clearly help "
        f"in {helps}.\n"
    )


def _best_setting(key: GroupKey, settings: Settings) -> list[str]:
    model, _, solved = key
    without_blocks = settings.pop((0, "-"), None)
    if not without_blocks or not settings:
        return []
    (blocks, kind), rows = min(settings.items(), key=lambda item: _mean_excess(item[1]))
    excess_without = {row["seed"]: row["excess"] for row in without_blocks}
    differences = [row["excess"] - excess_without[row["seed"]] for row in rows if row["seed"] in excess_without]
    if len(differences) > 1:
        deviation = f" ± {statistics.stdev(differences):.3f} over {len(differences)} seeds"
    else:
        deviation = " (one seed)"
    most = max(settings)[0]
    best_of_most = min(_mean_excess(rows) for (number, _), rows in settings.items() if number == most)
    return [
        f"- {model}, {_KEPT_WEIGHTS[solved]}: without blocks the excess is {_mean_excess(without_blocks):.3f}; the best of "
        f"the {len(settings)} settings with blocks, chosen after the fact, is B = {blocks} {kind}, "
        f"{statistics.mean(differences):+.3f}{deviation}; with B = {most} the best kind has "
        f"{best_of_most - _mean_excess(without_blocks):+.3f}."
    ]


def _correlation_sentence(metric: str, correlations: Rows) -> str:
    values = [row["rho"] for row in correlations]
    text = f"- {METRICS[metric][0].upper()}{METRICS[metric][1:]}: rho {min(values):+.2f} to {max(values):+.2f}"
    partial = [row for row in correlations if "partial" in row]
    if partial:
        helps = sum(row["partial_interval"][1] < 0 for row in partial)
        harms = sum(row["partial_interval"][0] > 0 for row in partial)
        values = [row["partial"] for row in partial]
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
        "fewest",
        "fewest, mean",
        "dead",
        "Gini",
        "sigma2 / random",
        "error",
    ]
    lines = [f"| {' | '.join(heads)} |", "|--:|---|" + "--:|" * (len(heads) - 2)]
    for (blocks, kind), runs in _by_setting(rows).items():
        graph = {metric: statistics.mean(row["graph"][metric] for row in runs) for metric in runs[0]["graph"]}
        cells = [
            str(blocks),
            kind,
            f"{statistics.mean(row['perplexity'] for row in runs):.2f}",
            f"{_mean_excess(runs):.3f}",
            f"{statistics.stdev(row['excess'] for row in runs):.3f}" if len(runs) > 1 else "",
            f"{graph['least_degree']:.0f}",
            f"{graph['mean_least_degree']:.1f}",
            f"{graph['dead_inputs']:.1f}",
            f"{graph['gini']:.3f}",
            f"{graph['sigma2_over_edge']:.3f}",
            f"{graph['output_error']:.4f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _correlations(correlations: Rows) -> str:
    lines = ["| model | kept weights | metric | rho | held fixed | runs |", "|---|---|---|---|---|--:|"]
    for row in correlations:
        cells = [
            row["model"],
            "solved for" if row["solved"] else "unchanged",
            METRICS[row["figure"]],
            with_interval(row, "rho", "interval"),
            with_interval(row, "partial", "partial_interval"),
            str(row["runs"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_interval(correlation: dict[str, Any], value: str, interval: str) -> str:
    """Return a correlation and its interval; empty if it was not computed."""
    if value not in correlation:
        return ""
    low, high = correlation[interval]
    return f"{correlation[value]:+.2f} [{low:+.2f}, {high:+.2f}]"
