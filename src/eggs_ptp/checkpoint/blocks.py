"""Blocks on their way from the run that prunes them to the folder that is written, with orders folded in."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from eggs_ptp.checkpoint.draft import Draft
from eggs_ptp.checkpoint.record import RunRecord
from eggs_ptp.engine.block_result import BlockResult
from eggs_ptp.engine.orders import find_orders
from eggs_ptp.engine.run import Inputs, Run
from eggs_ptp.engine.shards import sha256_of
from eggs_ptp.models.fold import Fold


def write_blocks(
    run: Run, inputs: Callable[[], Inputs] | None, draft: Draft, record: RunRecord
) -> tuple[Fold, dict[str, Tensor]]:
    """Prune block after block, each to disk as soon as it is finished, and record it and what is not in a block.

    Returns the fold, and all orders to be stored.

    `inputs` gives those of the first block, or is None where no method needs statistics. It may be called twice: a run
    overwrites them, and they are quicker made again than kept.
    """
    fold, orders = Fold(run.skeleton.family, run.skeleton.heads), dict[str, Tensor]()

    def take(found: Mapping[str, Tensor]) -> None:
        orders.update({name: order.to("cpu", torch.int32) for name, order in found.items()})
        for name, order in found.items() if run.plan.folds else ():
            fold.add(name, order)

    def keep(result: BlockResult) -> None:
        with run.stages.timed("write"):
            take(result.orders)
            tensors = {name: fold.apply(name, tensor) for name, tensor in result.tensors.items()}
            draft.write_block(result.index, tensors)
            pruned = {f"{matrix['name']}.weight" for matrix in result.records}
            note(tensors, pruned | result.tuned)
            record.tuned.extend(sorted(result.tuned - pruned))
        record.matrices.extend(result.records)

    def note(tensors: Mapping[str, Tensor], pruned: Collection[str] = ()) -> None:
        record.untouched.update({name: sha256_of(t) for name, t in tensors.items() if name not in pruned})

    if run.folded is not None:
        run.folded.update(find_orders(run, inputs() if inputs and run.plan.orders_first else None))
        take(run.folded)
    run.blocks(inputs() if inputs else None, keep)
    inside = f"{run.skeleton.family.blocks}."
    for name in run.shards.names:
        if not name.startswith(inside):
            note({name: fold.apply(name, run.shards.read(name))})
    return fold, orders
