"""Orders that can be folded: one of the residual stream from the dense model, one of each head, one of each MLP."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.engine.budget import ORDER_ROWS
from eggs_ptp.engine.observe import Observation, join, observe
from eggs_ptp.engine.plan import MatrixPlan, matrices_by_activation, order_stride
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.usage import give_back
from eggs_ptp.engine.wants import wants_of
from eggs_ptp.method.apply import Job, OneOrder, common_permute, score_of
from eggs_ptp.models.family import Family
from eggs_ptp.models.heads import Heads

if TYPE_CHECKING:
    from eggs_ptp.engine.capture import Inputs
    from eggs_ptp.engine.run import Run


def find_orders(run: "Run", inputs: "Inputs | None") -> dict[str, Tensor]:
    """Find one order for the space that spans the model, from the scores that its readers have in the dense model.

    Runs every block once over evenly spaced windows of `inputs` (see `order_stride`), whose hidden states are
    overwritten; `inputs` is None where no score needs statistics. Empty where no reader permutes.

    Raises:
        NumericsError: a weight, an activation or a score that is not finite; names the matrix or block.
    """
    readers = run.plan.folding("model")
    if not readers:
        return {}
    space = str(readers[0].space)
    with run.stages.timed("order"):
        permute = common_permute(
            (
                (found.method, found.pattern, matrix.rows * matrix.columns)
                for matrix in readers
                if (found := matrix.resolved)
            ),
            run.ranks,
        )
        rows = sum(matrix.rows for matrix in readers)
        if inputs is not None:
            inputs = inputs.every(order_stride(inputs.cut.windows, inputs.hidden.shape[1]))
        order = residual_order(_scores(run, readers, inputs), rows, permute)
        return dict(run.ranks.led(lambda: ({space: order}, None))[0])


def residual_order(scored: Iterable[tuple[Job, Tensor]], rows: int, permute: Callable[[Tensor], Tensor]) -> Tensor:
    """The order that `permute` finds from the scores of all readers, stacked in the order they run.

    `scored` gives each reader's job and score (out, in), one at a time; `rows` is what they have together. Of more
    than 8192 rows, that many evenly spaced ones are stacked.
    """
    count = min(ORDER_ROWS, rows)
    parts, passed = [], 0
    for _, score in scored:
        # Row i of the stack is row i * rows // count of all.
        first, last = (-(-row * count // rows) for row in (passed, passed + len(score)))
        parts.append(score[torch.arange(first, last, device=score.device) * rows // count - passed])
        passed += len(score)
    return permute(torch.cat(parts))


def _scores(run: "Run", readers: list[MatrixPlan], inputs: "Inputs | None") -> Iterator[tuple[Job, Tensor]]:
    last = max(matrix.block for matrix in readers)
    for index, block in enumerate(run.skeleton.blocks):
        if index > last:
            return
        groups = matrices_by_activation([matrix for matrix in readers if matrix.block == index])
        run.tell("stage", index, "order")
        seen = _dense(run, index, block, groups, inputs, onward=index < last) if inputs else {}
        for reads, matrices in groups.items():
            for matrix in matrices:
                job = run.job(matrix)
                yield job, score_of(job, functools.partial(statistic_of, seen, reads), seed=run.seed)
        give_back()
        if inputs:
            run.check_finite(inputs.hidden, index)


def _dense(
    run: "Run",
    index: int,
    block: nn.Module,
    groups: Mapping[str, list[MatrixPlan]],
    inputs: "Inputs",
    *,
    onward: bool,
) -> dict[str, Observation]:
    """Observe a dense block for its readers' scores, and replace the hidden states by what it makes of them."""
    wants = wants_of(groups, lambda method: method.steps["score"].statistics)
    with ExitStack() as stack:
        stack.enter_context(resident(block, run.skeleton.block_name(index), run.shards, run.dtype, run.device))
        counted = run.counted.tokens(inputs.hidden)
        seen = observe(block, inputs.hidden, inputs.kwargs[index], wants, inputs.cut, onward=onward, counted=counted)
        join(seen, run.ranks)
        return seen


def statistic_of(seen: Mapping[str, Observation], reads: str, matrix: str, wanted: str) -> Tensor:
    """A statistic of a matrix that reads the activation `reads`."""
    activation = matrix if STATISTICS[wanted].side == "output" else reads
    return seen[activation].moments.read(wanted, matrix)


def order_of(family: Family, heads: Heads, reads: str, found: Mapping[str, Tensor]) -> OneOrder:
    """How the readers of an activation come to the order of its space, where orders are folded."""
    space = family.spaces[reads]
    if family.reach[space] == "model":
        return OneOrder(given=found.get(space))
    if family.reach[space] == "head":
        return OneOrder(search=functools.partial(by_head, heads))
    return OneOrder(search=lambda score, permute: permute(score))


def by_head(heads: Heads, score: Tensor, permute: Callable[[Tensor], Tensor]) -> Tensor:
    """An order found inside each key/value head, from its query heads' scores stacked; for all query heads' channels.

    `score` is (out, query heads * width); the query heads of one key/value head stand side by side.
    """
    rows = len(score)
    shared = score.view(rows, heads.value, -1, heads.width).permute(1, 2, 0, 3)  # (value, query of it, out, width)
    orders = [permute(scores.reshape(-1, heads.width)) for scores in shared]
    first = torch.arange(heads.value, device=score.device)[:, None] * heads.width
    return heads.spread((torch.stack(orders) + first).reshape(-1))
