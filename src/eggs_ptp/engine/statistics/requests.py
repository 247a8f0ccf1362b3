"""Which statistics of which activations the matrices of a block need."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.engine.planning.plan import MatrixPlan
from eggs_ptp.engine.statistics.dense_stream import DenseTarget
from eggs_ptp.method.method import BoundMethod


@dataclass(frozen=True)
class StatisticRequest:
    """Statistics requested of one activation: the input or the output of a linear.

    Args:
        path: Module path of the linear inside the block.
        width: Channels of the activation.
        statistics: Names of the statistics, see `core.stats.STATISTICS`.
        side: Whether it is the linear's input or output.
        target: The dense model's activation, for statistics that compare the two.
    """

    path: str
    width: int
    statistics: frozenset[str]
    side: Literal["input", "output"] = "input"
    target: DenseTarget | None = None


def requests_for(
    groups: Mapping[str, list[MatrixPlan]],
    needed_by: Callable[[BoundMethod], frozenset[str]],
    targets: Mapping[str, DenseTarget] | None = None,
) -> dict[str, StatisticRequest]:
    """Collect the requests of a block's matrices.

    Args:
        groups: The matrices by the input activation that they share.
        needed_by: Gives the statistics that a method needs.
        targets: The dense model's activations, by activation.

    Returns:
        Requests by activation name: the shared input of each group, and by matrix name the outputs.
    """
    requests = {}
    for activation, matrices in groups.items():
        needed = {matrix.name: needed_by(matrix.resolved.method) for matrix in matrices if matrix.resolved}
        first = matrices[0]
        statistics = _of_side(("input", "dense"), needed.values())
        target = (targets or {}).get(activation)
        requests[activation] = StatisticRequest(first.path, first.columns, statistics, target=target)
        for matrix in matrices:
            if statistics := _of_side(("output",), [needed[matrix.name]]):
                requests[matrix.name] = StatisticRequest(matrix.path, matrix.rows, statistics, "output")
    return requests


def _of_side(sides: tuple[str, ...], needed: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset(name for names in needed for name in names if STATISTICS[name].side in sides)
