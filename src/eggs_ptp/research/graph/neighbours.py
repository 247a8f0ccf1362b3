"""How many outputs any set of inputs is guaranteed to be connected to, from the degrees alone."""

import numpy as np

from eggs_ptp.core.degrees import Counts, Degrees


def neighbour_bound(degrees: Degrees) -> Counts:
    """Least number of neighbours of any t inputs, for t = 1 .. in: max(d_(t), ceil(sum_(k <= t) d_(k) / d_out)).

    d_(1) <= d_(2) <= ... are the degrees of the inputs, d_out the largest degree of an output. t inputs have at least
    the neighbours of their best connected one, which has at least d_(t) connections; and their connections, at least
    d_(1) + ... + d_(t), end in outputs that take at most d_out each. The bound holds for every mask with these degrees;
    most masks have far more neighbours.
    """
    ascending = np.sort(degrees.inputs)
    largest_output_degree = max(1, int(degrees.outputs.max(initial=0)))
    bound: Counts = np.maximum(ascending, -(-ascending.cumsum() // largest_output_degree))
    return bound


def expands_to(degrees: Degrees) -> int:
    """Return the largest t for which `neighbour_bound` gives every set of up to t inputs more than t neighbours.

    Lemma 1 of EGGS-PTP alone, with its floor of B connections for every input, gives B - 1.
    """
    expands = neighbour_bound(degrees) > np.arange(1, len(degrees.inputs) + 1)
    return int(expands.cumprod().sum())
