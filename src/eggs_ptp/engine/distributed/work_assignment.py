"""Which process prunes which of the matrices that are pruned at the same time."""

from collections.abc import Mapping, Sequence

from eggs_ptp.core.row_tiles import tile_rows
from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.engine.distributed.process_group import ProcessGroup
from eggs_ptp.engine.planning.plan import MatrixPlan
from eggs_ptp.method.step import BoundStep

BALANCED = 1.05  # while no rank has more than this times its even share, splitting matrices gains nothing


def assign_work(groups: Mapping[str, Sequence[MatrixPlan]], group: ProcessGroup) -> dict[str, int]:
    """Assign matrices to ranks; those that are left out are pruned by all ranks together, row tile by row tile.

    Consumers of one activation are left out together, those with the costliest matrix first, as long as one rank would
    have much more to do than others. This decides who does the work, not its result: row tiles are always the same.

    Args:
        groups: The matrices by the input activation that they share.
        group: The processes.

    Returns:
        Ranks by matrix name.
    """
    unsplit = dict(groups)
    while True:
        costs = {matrix.name: _cost(matrix) for matrices in unsplit.values() for matrix in matrices}
        owners = group.assign(costs)
        loads = [0.0] * group.world_size
        for name, owner in owners.items():
            loads[owner] += costs[name]
        splittable = [activation for activation, matrices in unsplit.items() if _can_be_split(matrices)]
        if not splittable or max(loads) <= BALANCED * sum(loads) / group.world_size:
            return owners
        del unsplit[max(splittable, key=lambda activation: max(map(_cost, unsplit[activation])))]


def _cost(matrix: MatrixPlan) -> float:
    """Multiply-adds, roughly: a step that solves for weights multiplies the matrix with its Gram matrix."""
    return float(matrix.rows * matrix.columns * (matrix.columns if _solving_steps(matrix) else 1))


def _can_be_split(matrices: Sequence[MatrixPlan]) -> bool:
    """Whether every step that solves for weights works in row tiles, and some matrix has several of them."""
    steps = [step for matrix in matrices for step in _solving_steps(matrix)]
    has_tiles = any(_solving_steps(matrix) and len(tile_rows(matrix.rows, matrix.columns)) > 1 for matrix in matrices)
    return has_tiles and all("row_tiles" in step.data for step in steps)


def _solving_steps(matrix: MatrixPlan) -> list[BoundStep]:
    """The steps that use a matrix-valued statistic, such as a Gram matrix."""
    steps = matrix.resolved.method.bound_steps if matrix.resolved else ()
    return [step for step in steps if any(STATISTICS[name].is_matrix for name in step.statistics)]
