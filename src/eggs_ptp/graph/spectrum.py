"""Spectra of the normalised biadjacency, and the bounds that follow from them. Dead inputs and outputs drop out."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, svds
from torch import Tensor

from eggs_ptp.errors import NumericsError
from eggs_ptp.graph.degrees import Counts, Degrees, degrees

_TOLERANCE = 1e-6  # of the squared singular value
SHARE = 0.01  # of the inputs, or outputs, that Tanner's bounds are about


class Spectrum(NamedTuple):
    """What a mask's second singular value says; `random_edge` to `ramanujan` are on the same scale as it."""

    sigma2: float
    random_edge: float  # of masks that keep every weight with equal chance
    pattern_edge: float | None  # of random N:M masks; None where the pattern is not N:M
    ramanujan: float
    cheeger: float
    tanner_outputs: float  # share of the live outputs that any 1 % of the live inputs reach
    tanner_inputs: float  # share of the live inputs that any 1 % of the live outputs read


def spectrum(mask: Tensor, group: int | None = None) -> Spectrum | None:
    """All spectral figures of a mask, bool (out, in), `group` the M of its N:M pattern; None without any connection.

    Raises:
        NumericsError: the iterative solver does not converge.
    """
    live = _live(mask)
    inputs, outputs = degrees(live)
    if not len(inputs):
        return None
    sigma = second_singular_value(live)
    edge, group_edge = (random_edge(len(outputs), len(inputs), int(inputs.sum()), size) for size in (None, group))
    return Spectrum(
        sigma,
        edge,
        group_edge if group else None,
        ramanujan_bound(float(outputs.mean()), float(inputs.mean())),
        cheeger_bound(sigma),
        tanner_bound(sigma, Degrees(inputs, outputs), math.ceil(SHARE * len(inputs))) / len(outputs),
        tanner_bound(sigma, Degrees(outputs, inputs), math.ceil(SHARE * len(outputs))) / len(inputs),
    )


def second_singular_value(mask: Tensor) -> float:
    """sigma_2 of D_out^-1/2 m D_in^-1/2, whose sigma_1 is 1 with u_1 ~ sqrt(d_out), v_1 ~ sqrt(d_in).

    1 where the graph falls into pieces, 0 where everything is connected; inputs and outputs without a connection are
    left out, so they have to be counted before. The first pair is projected out and the rest left to scipy's svds
    (ARPACK), in float64, from a fixed start.

    Raises:
        NumericsError: ARPACK does not converge.
    """
    live = _live(mask)
    inputs, outputs = degrees(live)
    rows, columns = live.shape
    if int(inputs.sum()) == rows * columns:
        return 0.0
    places = np.flatnonzero(live.numpy())
    index = (places % columns).astype(np.int32)
    data = np.repeat(outputs**-0.5, outputs) * (inputs**-0.5)[index]
    matrix = csr_array((data, index, np.concatenate(([0], outputs.cumsum()))), shape=(rows, columns))
    left, right = (np.sqrt(counts / counts.sum()) for counts in (outputs, inputs))
    rest = LinearOperator(
        matrix.shape,
        matvec=lambda x: matrix @ x.ravel() - left * (right @ x.ravel()),
        rmatvec=lambda y: matrix.T @ y.ravel() - right * (left @ y.ravel()),
        dtype=np.float64,
    )
    start = np.random.default_rng(0).standard_normal(min(rows, columns))
    try:
        found: Any = svds(rest, k=1, tol=_TOLERANCE, v0=start, return_singular_vectors=False)
    except ArpackNoConvergence as error:
        raise NumericsError(f"the second singular value of {rows} x {columns} was not found ({error})") from error
    return min(1.0, float(found[0]))


def random_edge(outputs: int, inputs: int, connections: int, group: int | None = None) -> float:
    """Where random masks of this shape and density p have their sigma_2, up to a few per cent.

    s (sqrt(outputs) + sqrt(inputs f)) / sqrt(d_out d_in) with s^2 = p (1 - p) / f and mean degrees; f = 1 for masks
    that keep each weight with chance p, f = (M - 1) / M for those that keep N of every M: their rows lie in a space of
    M - 1 dimensions a group.
    """
    share = connections / (outputs * inputs)
    free = 1.0 if group is None else (group - 1) / group
    spread = math.sqrt(share * (1 - share) / free) * (math.sqrt(outputs) + math.sqrt(inputs * free))
    return spread / math.sqrt(connections / outputs * connections / inputs)


def ramanujan_bound(out_degree: float, in_degree: float) -> float:
    """(sqrt(d_out - 1) + sqrt(d_in - 1)) / sqrt(d_out d_in): sigma_2 of the best biregular graphs without end."""
    return (math.sqrt(out_degree - 1) + math.sqrt(in_degree - 1)) / math.sqrt(out_degree * in_degree)


def cheeger_bound(sigma: float) -> float:
    """(1 - sigma_2) / 2: least share of its connections by which a set of up to half of all is tied to the rest."""
    return (1.0 - sigma) / 2.0


def tanner_bound(sigma: float, found: Degrees, count: int) -> int:
    """Least number of outputs that any `count` inputs reach (the other way round with `found` turned round).

    vol N(S) >= vol S / (s + (1 - s) vol S / vol), s = sigma_2^2, vol a sum of degrees: vol S is at least that of the
    `count` lowest degrees, and as many outputs as have that volume at most are needed. For biregular graphs this is
    Tanner's |N(S)| >= |S| d^2 / (l + (d d' - l) |S| / n), l = sigma_2^2 d d'; it needs no regularity, but no dead ones.
    """
    volume, total = float(np.sort(found.inputs)[:count].sum()), float(found.inputs.sum())
    reached = volume / (sigma**2 + (1 - sigma**2) * volume / total)
    most: Counts = np.sort(found.outputs)[::-1].cumsum()
    return int(np.searchsorted(most, reached * (1 - _TOLERANCE))) + 1  # sigma is known no better


def _live(mask: Tensor) -> Tensor:
    inputs, outputs = degrees(mask)
    kept = mask.cpu()
    return kept if inputs.all() and outputs.all() else kept[outputs.nonzero()[0]][:, inputs.nonzero()[0]]
