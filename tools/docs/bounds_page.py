"""The page docs/findings/bounds.md, from docs/results/bounds.json."""

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_page import provenance
from connectivity_page import with_interval

Rows = list[dict[str, Any]]
Groups = dict[tuple[str, str], Rows]  # by model and pattern
Means = dict[str, dict[str, Any]]  # by method: whether it solves, and means of all metrics over the seeds

RECORD = Path(__file__).parents[2] / "docs" / "results" / "bounds.json"
_METRICS = {
    "error": "output error",
    "least_unchanged": "least, W kept",
    "least_updated": "least, W solved",
    "over_unchanged": "error / least, W kept",
    "over_updated": "error / least, W solved",
}
_KEPT_WEIGHTS = {False: "unchanged", True: "solved for"}
_HEAD = """# How much is left to gain?

<!-- Written by tools/docs/make_pages.py from docs/results/bounds.json. -->

`eggs diagnose --bounds` proves how small the output error of any mask of a pattern can be, and searches for the best mask
([how, and what the numbers are](../diagnose.md#lower-bounds)). This page compares these bounds with the errors of methods,
and with their perplexity. Each folder is evaluated as in [accuracy](../accuracy.md). Errors and bounds are measured on
{windows} windows of the calibration text, drawn with a seed that no method was calibrated with and the same for all.
"""
_READING = """## What the bound says, and what not

- **It does not depend on the method.** For one matrix, one set of inputs and one column order it is the same whatever chose
  the mask, so it cannot rank methods, and error / bound ranks them nearly as the error does. It varies between the rows
  below only because each matrix is measured on the inputs that it has in its own pruned model, and in the groups of the
  permutation it was pruned in. A correlation between the bound itself and the excess comes from these two, not from quality.
- **It says when to stop.** *Error - least* is the most that any other mask in this column order can still save in a layer;
  *error - best found* is what a known mask saves. What lies between is unknown: it is a limit of the proof (weakest with
  solved weights and strongly correlated inputs) and of the search. The best mask found was fitted to the tokens that it is
  measured on; the methods were calibrated on others of the same text.
- **It does not include drift between layers.** Every matrix is compared with the dense one on the same inputs, which
  already contain the errors of earlier layers. A method that compensates for them (`eggs+`) aims at something else on
  purpose, and counts as worse here: it can have a larger error and a lower perplexity.
- **Nor does it include how much the loss depends on an error.** The means weigh all matrices equally, and an error counts
  the same in directions that the rest of the model ignores. A bound on the error is not a bound on the perplexity.
- Two small models and one method per point: an ordering that holds here is an observation, not a law.
"""
_TABLES = """Means over the matrices, as shares of a matrix's output energy. *least* is proven: no mask of the pattern has a smaller error,
with unchanged kept weights (W kept) or with any (W solved). *best* is the smallest error found. The ratios divide the mean
error by the mean bound; the bound for W kept does not apply to methods that solve for weights. Sorted by excess,
ln(perplexity / dense perplexity).
"""
_CORRELATIONS = """Spearman's rho between each metric and the excess over the methods of a model. In brackets 95 % intervals by bootstrap over
the methods, 2000 resamples. The methods were chosen, not sampled, so an interval only says how much a rho depends on single
ones; of five methods it may say almost nothing. A rho above 0: more of it is worse. Of these methods only `eggs+` corrects
for drift, so the error measured here is not what it minimises.
"""
_ROLES = """For the method with the lowest excess of each kind, means over the blocks. Methods that leave kept weights unchanged are
compared with the bound and the best error for masks alone, methods that solve for them with those for any weights.
"""


def bounds() -> str:
    """Return the findings, the tables, and how they were measured."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    groups: Groups = {}
    for row in record["rows"]:
        groups.setdefault((row["model"], row["pattern"]), []).append(row)
    parts = [_HEAD.format(windows=record["protocol"]["looked_at"]), "## Findings\n"]
    parts += [*_findings(groups, record["correlations"]), "", _READING, "## Methods\n", _TABLES]
    for (model, pattern), rows in groups.items():
        dense = record["models"][model]["dense"]
        parts += [f"### {model}, {pattern}\n", f"Dense: {dense:.2f}.\n", _table(means_of(rows))]
    parts += ["## Correlations\n", _CORRELATIONS, _correlations(record["correlations"])]
    parts += ["## Errors by matrix\n", _ROLES, _roles(groups)]
    return "\n".join([*parts, "## How it was measured\n", provenance(record)])


def means_of(rows: Rows) -> Means:
    """Return means over the seeds by method, highest excess first."""
    methods: dict[str, Rows] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    by_method: Means = {}
    for method, runs in sorted(methods.items(), key=lambda item: -statistics.mean(row["excess"] for row in item[1])):
        means = {metric: statistics.mean(row["figures"][metric] for row in runs) for metric in runs[0]["figures"]}
        means |= {metric: statistics.mean(row[metric] for row in runs) for metric in ("perplexity", "excess")}
        by_method[method] = {**means, "solved": runs[0]["solved"]}
    return by_method


def _findings(groups: Groups, correlations: Rows) -> list[str]:
    means = [(model, means_of(rows)) for (model, _), rows in groups.items()]
    findings = [line for model, methods in means for line in _left_to_gain(model, methods)]
    findings += [_error_against_excess(model, methods) for model, methods in means]
    for metric in ("error", "over_unchanged", "over_updated"):
        findings += _correlation_sentence(metric, [row for row in correlations if row["figure"] == metric])
    rows = [row for group in groups.values() for row in group]
    across_matrices = [row["figures"]["across_matrices"] for row in rows]
    matrices = sum(row["figures"]["matrices"] for row in rows)
    below = sum(row["figures"]["below"] for row in rows)
    findings.append(
        "- Over the matrices of one run, bound and error are correlated: rho "
        f"{min(across_matrices):+.2f} to {max(across_matrices):+.2f}. The bound says which matrices are hard to prune, but "
        "not which method is good."
    )
    findings.append(f"- Of {matrices} pruned matrices, {below or 'none'} had an error below the bound.")
    return findings


def _left_to_gain(model: str, methods: Means) -> list[str]:
    """How far the method with the smallest error is from bound and best error, without and with weight updates."""
    lines = []
    for solved, kept in _KEPT_WEIGHTS.items():
        candidates = {name: means for name, means in methods.items() if means["solved"] is solved}
        if not candidates:
            continue
        method = min(candidates, key=lambda name: candidates[name]["error"])
        means = candidates[method]
        suffix = "updated" if solved else "unchanged"
        error = means["error"]
        best = means[f"best_{suffix}"]
        least = means[f"least_{suffix}"]
        any_weights = ", with any weights," if solved else ""
        lines.append(
            f"- {model}, kept weights {kept}: `{method}` has the smallest error, {error:.3f}. At most {error - least:.3f} "
            f"of it is left to gain ({1 - least / error:.0%}: no mask in its column order{any_weights} has less than "
            f"{least:.3f}), and {error - best:.3f} ({1 - best / error:.0%}) was found."
        )
    beyond_masks = [
        f"`{name}` ({means['error']:.3f}, against at least {means['least_unchanged']:.3f})"
        for name, means in methods.items()
        if means["solved"] and means["error"] < means["least_unchanged"]
    ]
    if beyond_masks:
        lines.append(
            f"- {model}: solving for kept weights gives a smaller error than any mask can have without it, proven, in the "
            f"mean over the matrices: {', '.join(beyond_masks)}."
        )
    return lines


def _error_against_excess(model: str, methods: Means) -> str:
    """The ranges of error and bounds, and pairs of methods that error and excess rank differently."""
    ranges = []
    for metric in ("error", "least_unchanged", "least_updated"):
        values = [means[metric] for means in methods.values()]
        low, high = min(values), max(values)
        ranges.append(f"{low:.3f} to {high:.3f} ({high / low:.1f} times)")
    text = (
        f"- {model}: over the methods the error ranges from {ranges[0]}, the bounds from {ranges[1]} and {ranges[2]}."
    )
    pairs = list(itertools.combinations(methods, 2))  # the first of each pair has the higher excess
    reversed_pairs = [(worse, better) for worse, better in pairs if methods[worse]["error"] < methods[better]["error"]]
    if reversed_pairs:
        worse, better = max(reversed_pairs, key=lambda pair: methods[pair[0]]["excess"] - methods[pair[1]]["excess"])
        text += (
            f" Of {len(pairs)} pairs of methods, error and excess rank {len(reversed_pairs)} differently; the largest "
            f"difference is between `{better}`, with error {methods[better]['error']:.3f} and excess "
            f"{methods[better]['excess']:.3f}, and `{worse}`, with {methods[worse]['error']:.3f} and "
            f"{methods[worse]['excess']:.3f}."
        )
    return text


def _correlation_sentence(metric: str, correlations: Rows) -> list[str]:
    parts = []
    for group in ("all methods", "without correction for drift"):
        rhos = [
            f"{with_interval(row, 'rho', 'interval')} ({row['model']})" for row in correlations if row["group"] == group
        ]
        if rhos:
            parts.append(f"{group}: rho {', '.join(rhos)}")
    name = f"{_METRICS[metric][0].upper()}{_METRICS[metric][1:]}"
    return [f"- {name} and excess, over {'; '.join(parts)}."] if parts else []


def _table(methods: Means) -> str:
    heads = ["method", "kept weights", "perplexity", "excess", "error", "least, W kept", "best, W kept"]
    heads += ["error / least", "least, W solved", "best, W solved", "error / least"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "--:|" * (len(heads) - 2)]
    for method, means in methods.items():
        cells = [
            method,
            _KEPT_WEIGHTS[means["solved"]],
            f"{means['perplexity']:.2f}",
            f"{means['excess']:.3f}",
            f"{means['error']:.4f}",
        ]
        for suffix in ("unchanged", "updated"):
            cells.append(f"{means[f'least_{suffix}']:.4f}")
            cells.append(f"{means[f'best_{suffix}']:.4f}")
            cells.append(f"{means[f'over_{suffix}']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _correlations(correlations: Rows) -> str:
    lines = ["| model | over | metric | rho | runs |", "|---|---|---|---|--:|"]
    for row in correlations:
        cells = [row["model"], row["group"], _METRICS[row["figure"]], with_interval(row, "rho", "interval")]
        lines.append(f"| {' | '.join([*cells, str(row['runs'])])} |")
    return "\n".join(lines) + "\n"


def _roles(groups: Groups) -> str:
    lines = ["| model | method | matrix | error | least | best | error / least |", "|---|---|---|--:|--:|--:|--:|"]
    for (model, _), rows in groups.items():
        for solved in _KEPT_WEIGHTS:
            of_kind = [row for row in rows if row["solved"] is solved]
            if not of_kind:
                continue
            method = list(means_of(of_kind))[-1]
            runs = [row["roles"] for row in of_kind if row["method"] == method]
            for role in runs[0]:
                means = {key: statistics.mean(run[role][key] for run in runs) for key in ("error", "least", "best")}
                ratio = f"{means['error'] / means['least']:.2f}" if means["least"] else ""
                cells = [model, method, role, *(f"{value:.4f}" for value in means.values()), ratio]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
