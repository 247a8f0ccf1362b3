"""Blocks on their way from the run that prunes them to the folder that is written, with orders folded in."""

from collections.abc import Callable

import torch
from torch import Tensor

from eggs_ptp.checkpoint.draft import Draft
from eggs_ptp.checkpoint.journal import Entry
from eggs_ptp.checkpoint.record import RunRecord
from eggs_ptp.engine.block_result import BlockResult
from eggs_ptp.engine.capture import Inputs
from eggs_ptp.engine.event import Event
from eggs_ptp.engine.orders import find_orders
from eggs_ptp.engine.run import Run
from eggs_ptp.engine.shards import sha256_of
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.fold import Fold


def write_blocks(
    run: Run, inputs: Callable[[], Inputs] | None, draft: Draft, record: RunRecord
) -> tuple[Fold, dict[str, Tensor]]:
    """Prune block after block, each to disk as soon as it is finished, and record it and what is not in a block.

    Returns the fold, and all orders to be stored. Where the draft keeps a journal, goes on behind the blocks in it.

    `inputs` gives those of the first block, or is None where no method needs statistics. It may be called twice: a run
    overwrites them, and they are quicker made again than kept.
    """
    draft.open_journal(record, run.shards.folder)
    written = _Written(run, draft, record)
    if run.folded is not None:
        written.take_orders(run.folded, inputs if run.plan.orders_first else None)
    done = draft.journal.blocks if draft.journal else 0
    given = inputs() if inputs and done < run.plan.blocks else None
    dense = None
    if done and draft.journal:
        text = f"Going on behind block {done} of {run.plan.blocks}, finished earlier ({draft.output})"
        run.listener(Event("remark", done, run.plan.blocks, text))
        if given:
            stream = draft.journal.stream()
            given, dense = Inputs(stream["hidden"].to(run.device), given.kwargs), stream.get("dense")
            dense = None if dense is None else dense.to(run.device)
    elif draft.journal:
        stored = sum(run.shards.bytes(name) for name in run.shards.names)
        if lack := draft.journal.lacks_room(given.hidden.nbytes * (1 + run.plan.needs_dense) if given else 0, stored):
            run.listener(Event("remark", 0, run.plan.blocks, lack))
            draft.drop_journal(draft.journal)
    written.given = given
    run.blocks(given, written.keep, done, dense)
    inside = f"{run.skeleton.family.blocks}."
    for name in run.shards.names:
        if not name.startswith(inside):
            record.untouched[name] = sha256_of(written.fold.apply(name, run.shards.read(name)))
    return written.fold, written.orders


class _Written:
    """What is finished: its orders and records here, its tensors on disk, and all of it in the journal if one is kept.

    `given` are the inputs of the first block to run, which every block overwrites by its outputs.
    """

    given: Inputs | None = None

    def __init__(self, run: Run, draft: Draft, record: RunRecord) -> None:
        self.run, self.draft, self.record = run, draft, record
        self.fold, self.orders = Fold(run.skeleton.family, run.skeleton.heads), dict[str, Tensor]()
        for entry in draft.journal.entries if draft.journal else ():
            self._take(entry)
            run.stages.seconds.update(entry.stages)
            record.seconds = entry.seconds

    def take_orders(self, folded: dict[str, Tensor], inputs: Callable[[], Inputs] | None) -> None:
        """Find the orders that must be known before the first block, or take them from the journal."""
        journal = self.draft.journal
        if journal and journal.entries:
            first = journal.entries[0]
        else:
            found = find_orders(self.run, inputs() if inputs else None)
            first = Entry(0, {name: order.cpu() for name, order in found.items()})
            self._take(first)
            if journal and found:
                journal.add(first, {})
        if first.blocks == 0:  # where there are none, the journal begins with the first block
            folded.update({name: order.to(self.run.device) for name, order in first.orders.items()})

    def keep(self, result: BlockResult) -> None:
        """Fold a block and put it on disk."""
        run = self.run
        entry = Entry(result.index + 1, result.orders, result.records)
        with run.stages.timed("write"):
            self._take(entry)
            tensors = {name: self.fold.apply(name, tensor) for name, tensor in result.tensors.items()}
            _check_cast(tensors)
            part = self.draft.write_block(result.index, tensors)
            pruned = {f"{matrix['name']}.weight" for matrix in result.records}
            entry.tuned = sorted(result.tuned - pruned)
            entry.untouched = {n: sha256_of(t) for n, t in tensors.items() if n not in pruned | result.tuned}
            self.record.untouched.update(entry.untouched)
            self.record.tuned.extend(entry.tuned)
        if self.draft.journal:
            with run.stages.timed("journal"):
                entry.stages, stream = dict(run.stages.seconds), dict[str, Tensor]()
                if self.given and entry.blocks < run.plan.blocks:
                    stream = {"hidden": self.given.hidden, **({"dense": run.dense.hidden} if run.dense else {})}
                self.draft.journal.add(entry, stream, part)

    def _take(self, entry: Entry) -> None:
        """Take over what an entry says; of a block that has just run, orders and records are all that it has."""
        self.orders.update({name: order.to("cpu", torch.int32) for name, order in entry.orders.items()})
        for name, order in entry.orders.items() if self.run.plan.folds else ():
            self.fold.add(name, order)
        self.record.matrices.extend(entry.matrices)
        self.record.untouched.update(entry.untouched)
        self.record.tuned.extend(entry.tuned)


def _check_cast(tensors: dict[str, Tensor]) -> None:
    """Refuse weights that were finite in float32 and are not in the type that they are stored in.

    Raises:
        NumericsError: names the first.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise NumericsError(
                f"{name}: an updated weight lies beyond {torch.finfo(tensor.dtype).max:g}, the largest that {kind} "
                "holds; prune a bfloat16 or float32 copy of the model"
            )
