"""Paired ratios of perplexities between the cells of a comparison, over the windows that all were evaluated on."""

from collections.abc import Mapping, Sequence
from typing import Any

from eggs_ptp.evaluation.estimate import Difference, difference

RunRecord = Mapping[str, Any]


def paired_ratio(records: Sequence[RunRecord], reference: Sequence[RunRecord]) -> Difference | None:
    """Return the perplexity of runs over that of reference runs, with its 95 % interval, paired over windows.

    With the loss a_w of window w, a mean over the seeds of the runs, and b_w that of the reference:
    exp of `evaluation.estimate.difference` of a and b. So the ratio is one of geometric means over seeds. The interval
    is over windows, not over seeds.

    Args:
        records: Records of the runs of one cell, one per seed.
        reference: Records of the other cell, or of the dense model.

    Returns:
        The ratio; None if a record has no losses (an older version has written it) or other windows.
    """
    evaluations = [record.get("evaluation", {}) for record in (*records, *reference)]
    windows = {(evaluation.get("sha256"), len(evaluation.get("losses") or ())) for evaluation in evaluations}
    if not records or not reference or len(windows) != 1 or not evaluations[0].get("losses"):
        return None
    return difference(_mean_losses(records), _mean_losses(reference), evaluations[0]["targets"]).exp()


def _mean_losses(records: Sequence[RunRecord]) -> list[float]:
    """Return the mean loss of every window over the seeds."""
    return [
        sum(losses) / len(records)
        for losses in zip(*(record["evaluation"]["losses"] for record in records), strict=True)
    ]
