"""Rank correlations between metrics of runs and their excess, with bootstrap intervals.

Spearman's rho between each metric and the excess ln(perplexity / dense perplexity) and, on request, the partial rho
with the rank of the output error held fixed, (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)). Each has a 95 %
interval (percentiles) from 2000 bootstrap resamples of the settings, each with all of its runs; resamples in which a
variable is constant are drawn again. Settings are not an independent sample, so an interval only says how much rho
depends on single ones.
"""

import math
from typing import Any

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 2000
LEAST_SETTINGS = 5


def correlated(metrics: dict[str, Any], settings: list[str], excess: Any, error: Any = None) -> list[dict[str, Any]]:
    """Correlate each metric with the excess.

    Args:
        metrics: Values by metric, one per run.
        settings: The setting of each run.
        excess: One value per run.
        error: Output errors, to be held fixed in a partial correlation.

    Returns:
        One entry per metric; none for constant ones, or with fewer than 5 settings.
    """
    setting_of_run = np.unique(settings, return_inverse=True)[1]
    excess = np.array(excess, dtype=float)
    result: list[dict[str, Any]] = []
    if len(set(settings)) < LEAST_SETTINGS:
        return result
    for metric, values_of_runs in metrics.items():
        values = np.array(values_of_runs, dtype=float)
        if np.ptp(values) == 0:
            continue
        rho, interval = resampled(setting_of_run, values, excess)
        result.append({"figure": metric, "runs": len(values), "rho": rho, "interval": interval})
        # undefined if the metric has the same ranks as the error
        if error is not None and math.isfinite(rank_correlation(values, excess, error)):
            partial, interval = resampled(setting_of_run, values, excess, error)
            result[-1] |= {"partial": partial, "partial_interval": interval}
    return result


def resampled(settings: Any, *variables: Any) -> tuple[float, list[float]]:
    """Return `rank_correlation`, and the 2.5 and 97.5 % percentiles over bootstrap resamples of the settings."""
    rng = np.random.default_rng(0)
    runs_of_setting = [np.flatnonzero(settings == setting) for setting in range(settings.max() + 1)]
    count = len(runs_of_setting)
    rhos: list[float] = []
    while len(rhos) < RESAMPLES:
        runs = np.concatenate([runs_of_setting[setting] for setting in rng.integers(count, size=count)])
        rho = rank_correlation(*(variable[runs] for variable in variables))
        if math.isfinite(rho):
            rhos.append(rho)
    low, high = np.percentile(rhos, (2.5, 97.5))
    return round(rank_correlation(*variables), 4), [round(float(low), 4), round(float(high), 4)]


def rank_correlation(x: Any, y: Any, fixed: Any = None) -> float:
    """Return Spearman's rho of x and y, or the partial one given `fixed`; NaN if a variable is constant."""
    ranks = [rankdata(variable) for variable in (x, y, *(() if fixed is None else (fixed,)))]
    if min(map(np.ptp, ranks)) == 0:
        return math.nan
    pearson = np.corrcoef(ranks)
    if fixed is None:
        return float(pearson[0, 1])
    scale = (1 - pearson[0, 2] ** 2) * (1 - pearson[1, 2] ** 2)
    return float((pearson[0, 1] - pearson[0, 2] * pearson[1, 2]) / math.sqrt(scale)) if scale > 1e-12 else math.nan


def line_of(correlation: dict[str, Any]) -> str:
    """Return a correlation as one line of text."""
    parts = []
    for key, interval_key, name in (
        ("rho", "interval", "rho"),
        ("partial", "partial_interval", "output error held fixed"),
    ):
        if key in correlation:
            low, high = correlation[interval_key]
            parts.append(f"{name} {correlation[key]:+.2f} [{low:+.2f}, {high:+.2f}]")
    return f"{correlation['figure']}: {', '.join(parts)}, {correlation['runs']} runs"
