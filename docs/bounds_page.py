"""The page docs/findings/bounds.md, from docs/results/bounds.json."""

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy_page import made_by
from connectivity_page import with_interval

Rows = list[dict[str, Any]]
Place = tuple[str, str]  # model, pattern
Means = dict[str, dict[str, Any]]  # by method: solved, perplexity, excess and every figure, means over the seeds

RECORD = Path(__file__).parent / "results" / "bounds.json"
_FIGURES = {
    "error": "output error",
    "least_unchanged": "least, W kept",
    "least_updated": "least, W solved",
    "over_unchanged": "error / least, W kept",
    "over_updated": "error / least, W solved",
}
_KEPT = {False: "as they were", True: "solved for"}
_HEAD = """# How much is left to gain?

<!-- Written by docs/make_pages.py from docs/results/bounds.json. -->

`eggs diagnose --bounds` proves how little output error any mask of a pattern could have, and searches for the best mask
([how, and what the numbers are](../diagnose.md#with---bounds)). Here that stands beside what methods come to, and beside
their perplexity. Each folder is evaluated as in [accuracy](../accuracy.md), and errors and bounds are taken on {looked_at}
windows of the calibration text drawn with a seed that no method was calibrated with, the same for all.
"""
_READING = """## What the bound can say, and what not

- **It is no figure of the method.** For one matrix, one set of inputs and one column order it is the same whatever chose
  the mask, so it cannot rank methods, and error / bound ranks them nearly as the error does. It moves between rows below
  only because each matrix is asked about the inputs that it has in its own pruned model, and about the groups of the
  order that it was pruned in. A correlation of the bound itself with the excess is of these two, and not of quality.
- **It says when to stop.** *Error - least* is the most that any other mask in this column order could still save in a
  layer, whoever finds it, and *error - best found* what one is known to save. What lies between is open: a limit of the
  proof (weakest for solved weights where inputs are strongly correlated) as well as of the search. Best found has been
  fitted to the tokens that it is judged by; the methods have seen others of the same text.
- **Drift between layers is not in it.** Every matrix is asked to give what the dense one gives for the same inputs, which
  earlier layers have already got wrong. A method that corrects for that (`eggs+`) aims at something else on purpose, and
  is charged for it here: it can have more error and less perplexity.
- **Nor is what the loss minds.** The means weigh all matrices alike, and an error counts the same in directions that the
  rest of the model ignores. A bound on the error is none on perplexity.
- Two small models and one method a point: an order that holds here is an observation, not a law.
"""
_TABLES = """Means over the matrices, as shares of what a matrix puts out. *least* is proven: no mask of the pattern loses less, with
kept weights as they were (W kept) or whatever they are (W solved). *best* is the best that was found. The ratios divide
the mean error by the mean bound; the bound for W kept does not bind methods that solve for weights. Sorted by excess,
ln(perplexity / dense).
"""
_CORRELATIONS = """Spearman's rho of each figure with the excess over the methods of a model. In brackets 95 % intervals by bootstrap over the
methods, 2000 resamples. Methods were picked, not drawn, so an interval says how much a rho hangs on single ones, and no
more; of five methods it may say next to nothing. A rho above 0: what has more of it is worse. Of these methods `eggs+`
alone corrects for drift, so that its error here is not what it minimises.
"""
_ROLES = """Of the method with the least excess of each kind, means over the blocks: with kept weights as they were beside the bound and
best of masks alone, solved for beside those of any weights.
"""


def bounds() -> str:
    """What the record says, its tables, and how it was made."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    groups: dict[Place, Rows] = {}
    for row in record["rows"]:
        groups.setdefault((row["model"], row["pattern"]), []).append(row)
    parts = [_HEAD.format(looked_at=record["protocol"]["looked_at"]), "## What the runs say\n"]
    parts += [*_findings(groups, record["correlations"]), "", _READING, "## Methods\n", _TABLES]
    for (model, pattern), rows in groups.items():
        dense = record["models"][model]["dense"]
        parts += [f"### {model}, {pattern}\n", f"Dense: {dense:.2f}.\n", _table(means_of(rows))]
    parts += ["## Correlations\n", _CORRELATIONS, _correlations(record["correlations"])]
    parts += ["## Where it is lost\n", _ROLES, _roles(groups)]
    return "\n".join([*parts, "## How it was made\n", made_by(record)])


def means_of(rows: Rows) -> Means:
    """By method, most excess first."""
    methods: dict[str, Rows] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    found: Means = {}
    for method, runs in sorted(methods.items(), key=lambda pair: -statistics.mean(row["excess"] for row in pair[1])):
        means = {name: statistics.mean(row["figures"][name] for row in runs) for name in runs[0]["figures"]}
        means |= {name: statistics.mean(row[name] for row in runs) for name in ("perplexity", "excess")}
        found[method] = {**means, "solved": runs[0]["solved"]}
    return found


def _findings(groups: dict[Place, Rows], correlations: Rows) -> list[str]:
    said = [line for (model, _), rows in groups.items() for line in _left(model, means_of(rows))]
    said += [line for (model, _), rows in groups.items() for line in _moves(model, means_of(rows))]
    for figure in ("error", "over_unchanged", "over_updated"):
        said += _sign(figure, [one for one in correlations if one["figure"] == figure])
    rows = [row for every in groups.values() for row in every]
    across = [row["figures"]["across_matrices"] for row in rows]
    matrices, below = (sum(row["figures"][name] for row in rows) for name in ("matrices", "below"))
    said.append(
        f"- Over the matrices of one run, the bound does go with the error: rho {min(across):+.2f} to {max(across):+.2f}. "
        "It tells which matrices are hard to prune, if not which method is good."
    )
    said.append(f"- Of {matrices} matrices pruned, {below or 'none'} came below the bound.")
    return said


def _left(model: str, means: Means) -> list[str]:
    """Of each treatment of weights, how far the method with the least error is from bound and best found."""
    said = []
    for solved, kept in _KEPT.items():
        mine = {name: found for name, found in means.items() if found["solved"] is solved}
        if not mine:
            continue
        method = min(mine, key=lambda name: mine[name]["error"])
        error = mine[method]["error"]
        best, least = (mine[method][f"{which}_{'updated' if solved else 'unchanged'}"] for which in ("best", "least"))
        said.append(
            f"- {model}, kept weights {kept}: the least error is `{method}`'s, {error:.3f}. At most {error - least:.3f} of "
            f"that is left to gain ({1 - least / error:.0%}: no mask in its order{', with any weights,' * solved} has less than "
            f"{least:.3f}), and "
            f"{error - best:.3f} ({1 - best / error:.0%}) was found."
        )
    beyond = [
        f"`{name}` ({found['error']:.3f}, against at least {found['least_unchanged']:.3f})"
        for name, found in means.items()
        if found["solved"] and found["error"] < found["least_unchanged"]
    ]
    if beyond:
        said.append(
            f"- {model}: solving for kept weights comes below what the best of masks could do without it, proven, in the "
            f"mean over the matrices: {', '.join(beyond)}."
        )
    return said


def _moves(model: str, means: Means) -> list[str]:
    """How much the bound moves beside the error, and which methods error and excess put in another order."""
    spans = {
        name: (min(values), max(values))
        for name in ("error", "least_unchanged", "least_updated")
        for values in ([found[name] for found in means.values()],)
    }
    ranges = [f"{low:.3f} to {high:.3f} ({high / low:.1f} times)" for low, high in spans.values()]
    said = [
        f"- {model}: over the methods the error goes from {ranges[0]}, the bounds from {ranges[1]} and {ranges[2]}."
    ]
    pairs = list(itertools.combinations(means, 2))  # of each the first has more excess
    other = [(worse, better) for worse, better in pairs if means[worse]["error"] < means[better]["error"]]
    if other:
        worse, better = max(other, key=lambda pair: means[pair[0]]["excess"] - means[pair[1]]["excess"])
        said[0] += (
            f" Of {len(pairs)} pairs of methods, {len(other)} are in another order by error than by excess; furthest apart "
            f"`{better}`, with the error {means[better]['error']:.3f} and the excess {means[better]['excess']:.3f}, and "
            f"`{worse}`, with {means[worse]['error']:.3f} and {means[worse]['excess']:.3f}."
        )
    return said


def _sign(figure: str, found: Rows) -> list[str]:
    parts = []
    for group in ("all methods", "without correction for drift"):
        rhos = [f"{with_interval(one, 'rho', 'interval')} ({one['model']})" for one in found if one["group"] == group]
        parts += [f"{group}: rho {', '.join(rhos)}"] if rhos else []
    name = f"{_FIGURES[figure][0].upper()}{_FIGURES[figure][1:]}"
    return [f"- {name} with the excess, over {'; '.join(parts)}."] if parts else []


def _table(means: Means) -> str:
    heads = ["method", "kept weights", "perplexity", "excess", "error", "least, W kept", "best, W kept"]
    heads += ["error / least", "least, W solved", "best, W solved", "error / least"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "--:|" * (len(heads) - 2)]
    for method, found in means.items():
        cells = [method, _KEPT[found["solved"]], f"{found['perplexity']:.2f}", f"{found['excess']:.3f}"]
        cells += [f"{found['error']:.4f}"]
        for kind in ("unchanged", "updated"):
            cells += [f"{found[f'{which}_{kind}']:.4f}" for which in ("least", "best")] + [
                f"{found[f'over_{kind}']:.2f}"
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _correlations(found: Rows) -> str:
    lines = ["| model | over | figure | rho | runs |", "|---|---|---|---|--:|"]
    for one in found:
        cells = [one["model"], one["group"], _FIGURES[one["figure"]], with_interval(one, "rho", "interval")]
        lines.append(f"| {' | '.join([*cells, str(one['runs'])])} |")
    return "\n".join(lines) + "\n"


def _roles(groups: dict[Place, Rows]) -> str:
    lines = ["| model | method | matrix | error | least | best | error / least |", "|---|---|---|--:|--:|--:|--:|"]
    for (model, _), rows in groups.items():
        for solved in _KEPT:
            mine = [row for row in rows if row["solved"] is solved]
            if not mine:
                continue
            method = list(means_of(mine))[-1]
            runs = [row["roles"] for row in mine if row["method"] == method]
            for role in runs[0]:
                mean = {key: statistics.mean(run[role][key] for run in runs) for key in ("error", "least", "best")}
                ratio = f"{mean['error'] / mean['least']:.2f}" if mean["least"] else ""
                cells = [model, method, role, *(f"{value:.4f}" for value in mean.values()), ratio]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
