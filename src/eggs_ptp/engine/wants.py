"""Which statistics of which activations a block's matrices ask for."""

from collections.abc import Callable, Mapping

from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.engine.dense import Target
from eggs_ptp.engine.observe import Want
from eggs_ptp.engine.plan import MatrixPlan
from eggs_ptp.method.method import BoundMethod


def wants_of(
    groups: Mapping[str, list[MatrixPlan]],
    asked: Callable[[BoundMethod], frozenset[str]],
    targets: Mapping[str, Target] | None = None,
) -> dict[str, Want]:
    """What to watch, by activation for inputs and by matrix for outputs; `asked` says what a method needs.

    `targets` has what the dense model has, by activation.
    """
    wants = {}
    for reads, matrices in groups.items():
        needed = {matrix.name: asked(matrix.resolved.method) for matrix in matrices if matrix.resolved}
        inputs = _of_side(("input", "dense"), *needed.values())
        target = (targets or {}).get(reads)
        wants[reads] = Want(matrices[0].path, matrices[0].columns, inputs, target=target)
        for matrix in matrices:
            if outputs := _of_side(("output",), needed[matrix.name]):
                wants[matrix.name] = Want(matrix.path, matrix.rows, outputs, "output")
    return wants


def _of_side(sides: tuple[str, ...], *asked: frozenset[str]) -> frozenset[str]:
    return frozenset(name for names in asked for name in names if STATISTICS[name].side in sides)
