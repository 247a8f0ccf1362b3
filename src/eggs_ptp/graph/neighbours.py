"""Neighbourhoods: how many outputs any set of inputs is sure to reach, from the degrees alone."""

import numpy as np

from eggs_ptp.graph.degrees import Counts, Degrees


def neighbour_bound(found: Degrees) -> Counts:
    """Least number of neighbours of any t inputs, for t = 1 .. in: max(d_(t), ceil(sum_(k <= t) d_(k) / d_out)).

    d_(1) <= d_(2) <= ... are the degrees of the inputs, d_out the largest degree of an output: t inputs reach what
    their best connected one reaches, which has at least d_(t) connections; and their connections, d_(1) + ... + d_(t)
    at least, end in outputs that take d_out each. Every mask of these degrees satisfies it; most reach far more.
    """
    ascending = np.sort(found.inputs)
    most = max(1, int(found.outputs.max(initial=0)))
    bound: Counts = np.maximum(ascending, -(-ascending.cumsum() // most))
    return bound


def expands_to(found: Degrees) -> int:
    """The largest t for which any set of up to t inputs is sure, by `neighbour_bound`, to have more than t neighbours.

    Lemma 1 alone, with its floor of B connections an input, gives B - 1.
    """
    more = neighbour_bound(found) > np.arange(1, len(found.inputs) + 1)
    return int(more.cumprod().sum())
