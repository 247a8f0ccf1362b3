"""The spectrum of the normalised biadjacency matrix of a mask, and the bounds that follow from it.

Dead inputs and outputs, which have no connection, are left out.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, svds
from torch import Tensor

from eggs_ptp.core.degrees import Counts, Degrees, degrees
from eggs_ptp.errors import NumericsError

_TOLERANCE = 1e-6  # relative, of the squared singular value
SHARE = 0.01  # of the inputs, or outputs, for which Tanner's bounds are given


class Spectrum(NamedTuple):
    """The second singular value of a mask, reference values on the same scale, and bounds.

    Attributes:
        sigma2: The second singular value.
        random_edge: That of random masks which keep every weight with equal probability.
        pattern_edge: That of random N:M masks; None if the pattern is not N:M.
        ramanujan: That of Ramanujan graphs with these mean degrees.
        cheeger: Lower bound on the conductance.
        tanner_outputs: Least share of the live outputs that any 1 % of the live inputs are connected to.
        tanner_inputs: Least share of the live inputs that any 1 % of the live outputs are connected to.
    """

    sigma2: float
    random_edge: float
    pattern_edge: float | None
    ramanujan: float
    cheeger: float
    tanner_outputs: float
    tanner_inputs: float


def spectrum(mask: Tensor, group: int | None = None) -> Spectrum | None:
    """Compute the spectrum of a mask and its bounds.

    Args:
        mask: Bool (out, in).
        group: M of its N:M pattern; None if it has none.

    Returns:
        None if the mask has no connection.

    Raises:
        NumericsError: The iterative solver does not converge.
    """
    live_mask = _live_part(mask)
    inputs, outputs = degrees(live_mask)
    if not len(inputs):
        return None
    sigma2 = second_singular_value(live_mask)
    connections = int(inputs.sum())
    pattern_edge = random_edge(len(outputs), len(inputs), connections, group) if group else None
    return Spectrum(
        sigma2=sigma2,
        random_edge=random_edge(len(outputs), len(inputs), connections),
        pattern_edge=pattern_edge,
        ramanujan=ramanujan_bound(float(outputs.mean()), float(inputs.mean())),
        cheeger=cheeger_bound(sigma2),
        tanner_outputs=tanner_bound(sigma2, Degrees(inputs, outputs), math.ceil(SHARE * len(inputs))) / len(outputs),
        tanner_inputs=tanner_bound(sigma2, Degrees(outputs, inputs), math.ceil(SHARE * len(outputs))) / len(inputs),
    )


def second_singular_value(mask: Tensor) -> float:
    """sigma_2 of D_out^-1/2 m D_in^-1/2, whose sigma_1 is 1 with u_1 ~ sqrt(d_out), v_1 ~ sqrt(d_in).

    1 if the graph is disconnected, 0 if everything is connected to everything. Inputs and outputs without a connection
    are left out, so count them first. The first singular pair is projected out, and scipy's svds (ARPACK) finds the
    largest of the rest, in float64 from a seeded start.

    Raises:
        NumericsError: ARPACK does not converge.
    """
    live_mask = _live_part(mask)
    inputs, outputs = degrees(live_mask)
    rows, columns = live_mask.shape
    if int(inputs.sum()) == rows * columns:
        return 0.0
    positions = np.flatnonzero(live_mask.numpy())
    column_indices = (positions % columns).astype(np.int32)
    data = np.repeat(outputs**-0.5, outputs) * (inputs**-0.5)[column_indices]
    row_starts = np.concatenate(([0], outputs.cumsum()))
    matrix = csr_array((data, column_indices, row_starts), shape=(rows, columns))
    left, right = (np.sqrt(counts / counts.sum()) for counts in (outputs, inputs))
    deflated = LinearOperator(
        matrix.shape,
        matvec=lambda x: matrix @ x.ravel() - left * (right @ x.ravel()),
        rmatvec=lambda y: matrix.T @ y.ravel() - right * (left @ y.ravel()),
        dtype=np.float64,
    )
    start = np.random.default_rng(0).standard_normal(min(rows, columns))
    try:
        values: Any = svds(deflated, k=1, tol=_TOLERANCE, v0=start, return_singular_vectors=False)
    except ArpackNoConvergence as error:
        raise NumericsError(f"the second singular value of {rows} x {columns} was not found ({error})") from error
    return min(1.0, float(values[0]))


def random_edge(outputs: int, inputs: int, connections: int, group: int | None = None) -> float:
    """Return the sigma_2 of random masks of this shape and density p, accurate to a few per cent.

    s (sqrt(outputs) + sqrt(inputs f)) / sqrt(d_out d_in) with s^2 = p (1 - p) / f and mean degrees. f = 1 for masks
    that keep each weight with probability p; f = (M - 1) / M for those that keep N of every M, because their rows have
    M - 1 degrees of freedom for each group.

    Args:
        outputs: Rows.
        inputs: Columns.
        connections: Weights that are kept.
        group: M of an N:M pattern; None for masks without one.
    """
    share = connections / (outputs * inputs)
    freedom = 1.0 if group is None else (group - 1) / group
    spread = math.sqrt(share * (1 - share) / freedom) * (math.sqrt(outputs) + math.sqrt(inputs * freedom))
    return spread / math.sqrt(connections / outputs * connections / inputs)


def ramanujan_bound(out_degree: float, in_degree: float) -> float:
    """(sqrt(d_out - 1) + sqrt(d_in - 1)) / sqrt(d_out d_in): the limit of sigma_2 for the best biregular graphs."""
    return (math.sqrt(out_degree - 1) + math.sqrt(in_degree - 1)) / math.sqrt(out_degree * in_degree)


def cheeger_bound(sigma2: float) -> float:
    """(1 - sigma_2) / 2: any set with up to half of all connections has at least this share of its own leave it."""
    return (1.0 - sigma2) / 2.0


def tanner_bound(sigma2: float, degrees: Degrees, count: int) -> int:
    """Least number of outputs that any `count` inputs are connected to.

    vol N(S) >= vol S / (s + (1 - s) vol S / vol), s = sigma_2^2, where vol is a sum of degrees. vol S is at least the
    sum of the `count` lowest input degrees; the bound is the number of outputs whose largest degrees add up to
    vol N(S). For biregular graphs this is Tanner's |N(S)| >= |S| d^2 / (l + (d d' - l) |S| / n), l = sigma_2^2 d d'. It
    needs no regularity, but no input or output may be dead.

    Args:
        sigma2: The second singular value.
        degrees: Of the mask; swapped for the least number of inputs of `count` outputs.
        count: Size of the set.
    """
    volume = float(np.sort(degrees.inputs)[:count].sum())
    total = float(degrees.inputs.sum())
    neighbour_volume = volume / (sigma2**2 + (1 - sigma2**2) * volume / total)
    largest_volumes: Counts = np.sort(degrees.outputs)[::-1].cumsum()
    # sigma2 is only known to the solver's tolerance
    return int(np.searchsorted(largest_volumes, neighbour_volume * (1 - _TOLERANCE))) + 1


def _live_part(mask: Tensor) -> Tensor:
    """Return the mask without dead rows and columns, on the CPU."""
    inputs, outputs = degrees(mask)
    mask = mask.cpu()
    if inputs.all() and outputs.all():
        return mask
    return mask[outputs.nonzero()[0]][:, inputs.nonzero()[0]]
