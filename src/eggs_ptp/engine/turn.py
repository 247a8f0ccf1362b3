"""Turn: matrices that are pruned at once, and which rank does which of them."""

from collections.abc import Mapping, Sequence

from eggs_ptp.core.slabs import cut
from eggs_ptp.engine.plan import MatrixPlan
from eggs_ptp.engine.ranks import Ranks
from eggs_ptp.method.step import Bound

EVEN = 1.05  # times its part of all: while nobody has more than that to do, sharing out gains nothing


def dealt(groups: Mapping[str, Sequence[MatrixPlan]], ranks: Ranks) -> dict[str, int]:
    """The rank that does each matrix by itself; those that are left out, all ranks do together, slab by slab.

    Readers of an activation are left out together, those with the costliest matrix first, while one rank had much more
    to do than others. That decides who works and not what comes of it: slabs are the same in any case.
    """
    alone = dict(groups)
    while True:
        costs = {matrix.name: _cost(matrix) for matrices in alone.values() for matrix in matrices}
        owners, loads = ranks.deal(costs), [0.0] * ranks.count
        for name, owner in owners.items():
            loads[owner] += costs[name]
        shareable = [reads for reads, matrices in alone.items() if _can_be_shared(matrices)]
        if not shareable or max(loads) <= EVEN * sum(loads) / ranks.count:
            return owners
        del alone[max(shareable, key=lambda reads: max(map(_cost, alone[reads])))]


def _cost(matrix: MatrixPlan) -> float:
    """About what a matrix takes: what is solved for takes a product with its Gram matrix."""
    return float(matrix.rows * matrix.columns * (matrix.columns if _solving(matrix) else 1))


def _can_be_shared(matrices: Sequence[MatrixPlan]) -> bool:
    """Whether all that is solved for is so slab by slab, and there is a matrix of several slabs among it."""
    steps = [step for matrix in matrices for step in _solving(matrix)]
    several = any(_solving(matrix) and len(cut(matrix.rows, matrix.columns)) > 1 for matrix in matrices)
    return several and all("slabs" in step.data for step in steps)


def _solving(matrix: MatrixPlan) -> list[Bound]:
    """The steps that see a Gram matrix."""
    links = matrix.resolved.method.links if matrix.resolved else ()
    return [step for step in links if {"gram", "cross"} & step.statistics]
