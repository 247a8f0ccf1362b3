"""Rank correlations of figures of runs with their excess, with intervals.

Spearman's rho of each figure with the excess ln(perplexity / dense) and, on request, the partial rho with the rank of
the output error held fixed, (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)). Each has a 95 % interval
(percentiles) from 2000 bootstrap resamples of the settings, with all runs of each; resamples in which something is
constant are drawn again.
Settings are no independent sample of anything, so an interval says how much rho hangs on single ones, and no more.
"""

import math
from typing import Any

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 2000
LEAST_SETTINGS = 5


def correlated(figures: dict[str, Any], settings: list[str], excess: Any, error: Any = None) -> list[dict[str, Any]]:
    """What can be said of each figure: none where it is the same in all runs, or of too few settings."""
    member = np.unique(settings, return_inverse=True)[1]
    excess = np.array(excess, dtype=float)
    found: list[dict[str, Any]] = []
    if len(set(settings)) < LEAST_SETTINGS:
        return found
    for figure, run_values in figures.items():
        values = np.array(run_values, dtype=float)
        if np.ptp(values) == 0:
            continue
        rho, interval = resampled(member, values, excess)
        found.append({"figure": figure, "runs": len(values), "rho": rho, "interval": interval})
        # There is none where the figure ranks as the error does.
        if error is not None and math.isfinite(rank_correlation(values, excess, error)):
            partial, interval = resampled(member, values, excess, error)
            found[-1] |= {"partial": partial, "partial_interval": interval}
    return found


def resampled(settings: Any, *variables: Any) -> tuple[float, list[float]]:
    """The rho of `rank_correlation`, and 2.5 and 97.5 % of its bootstrap resamples, setting by setting."""
    draw_from = np.random.default_rng(0)
    members = [np.flatnonzero(settings == setting) for setting in range(settings.max() + 1)]
    found: list[float] = []
    while len(found) < RESAMPLES:
        chosen = np.concatenate([members[place] for place in draw_from.integers(len(members), size=len(members))])
        rho = rank_correlation(*(variable[chosen] for variable in variables))
        if math.isfinite(rho):
            found.append(rho)
    low, high = np.percentile(found, (2.5, 97.5))
    return round(rank_correlation(*variables), 4), [round(float(low), 4), round(float(high), 4)]


def rank_correlation(x: Any, y: Any, fixed: Any = None) -> float:
    """Spearman's rho of x and y, or the partial one given `fixed`; NaN where something is constant."""
    variables = [rankdata(variable) for variable in (x, y, *(() if fixed is None else (fixed,)))]
    if min(map(np.ptp, variables)) == 0:
        return math.nan
    found = np.corrcoef(variables)
    if fixed is None:
        return float(found[0, 1])
    scale = (1 - found[0, 2] ** 2) * (1 - found[1, 2] ** 2)
    return float((found[0, 1] - found[0, 2] * found[1, 2]) / math.sqrt(scale)) if scale > 1e-12 else math.nan


def said(found: dict[str, Any]) -> str:
    """One line of a correlation."""
    parts = []
    for key, name in (("rho", "rho"), ("partial", "output error held fixed")):
        if key in found:
            low, high = found["interval" if key == "rho" else "partial_interval"]
            parts.append(f"{name} {found[key]:+.2f} [{low:+.2f}, {high:+.2f}]")
    return f"{found['figure']}: {', '.join(parts)}, {found['runs']} runs"
