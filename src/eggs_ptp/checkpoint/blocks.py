"""Blocks on their way from the run that prunes them to the folder that is written, with orders folded in."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from eggs_ptp.checkpoint.draft import Draft
from eggs_ptp.checkpoint.journal import Entry
from eggs_ptp.checkpoint.record import RunRecord
from eggs_ptp.checkpoint.stream import Spec
from eggs_ptp.core.finite import finite
from eggs_ptp.engine.block_result import BlockResult
from eggs_ptp.engine.capture import Inputs
from eggs_ptp.engine.event import Event
from eggs_ptp.engine.orders import find_orders
from eggs_ptp.engine.run import Run
from eggs_ptp.engine.shards import sha256_of
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.fold import Fold


def write_blocks(
    run: Run, inputs: Callable[[], Inputs] | None, draft: Draft | None, record: RunRecord
) -> tuple[Fold, dict[str, Tensor]]:
    """Prune block after block, each to disk as soon as it is finished, and record it and what is not in a block.

    Returns the fold, and all orders to be stored. Where the draft keeps a journal, goes on behind the blocks in it.

    `inputs` gives those of the first block, or is None where no method needs statistics. It may be called twice: a run
    overwrites them, and they are quicker made again than kept. Of several ranks, only the first has a draft.
    """
    journal = draft.open_journal(record, run.shards.folder) if draft else None
    record.batch_tokens = run.ranks.of_leader(lambda: journal.batch_tokens if journal else record.batch_tokens)
    run.plan = run.plan.in_batches(record.batch_tokens)
    written = _Written(run, draft, record)
    if run.folded is not None:
        written.take_orders(run.folded, inputs if run.plan.orders_first else None)
    done = run.ranks.of_leader(lambda: journal.blocks if journal else 0)
    given = inputs() if inputs and done < run.plan.blocks else None
    dense = None
    if done:
        text = f"Going on behind block {done} of {run.plan.blocks}, finished earlier ({record.output})"
        run.listener(Event("remark", done, run.plan.blocks, text))
        if given:
            stream = journal.stream() if journal else {}
            run.ranks.scatter(stream.get("hidden"), given.hidden)
            if run.plan.needs_dense:
                dense = run.shelf.copy(given.hidden)
                run.ranks.scatter(stream.get("dense"), dense)
    elif draft and journal:
        stored = sum(run.shards.bytes(name) for name in run.shards.names)
        hidden_bytes = written.spec(given).nbytes * (1 + run.plan.needs_dense) if given else 0
        if lack := journal.lacks_room(hidden_bytes, stored):
            run.listener(Event("remark", 0, run.plan.blocks, lack))
            draft.drop_journal(journal)
    written.given, written.journalled = given, run.ranks.of_leader(lambda: bool(draft and draft.journal))
    run.blocks(given, written.keep, done, dense)
    inside = f"{run.skeleton.family.blocks}."
    for name in run.shards.names if draft else ():
        if not name.startswith(inside):
            record.untouched[name] = sha256_of(written.fold.pieces(name, run.shards.pieces(name)))
    return written.fold, written.orders


class _Written:
    """What is finished: its orders and records here, its tensors on disk, and all of it in the journal if one is kept.

    `given` are the inputs of the first block to run, which every block overwrites by its outputs; `journalled`, whether
    a journal is kept, by whichever rank.
    """

    given: Inputs | None = None
    journalled = False

    def __init__(self, run: Run, draft: Draft | None, record: RunRecord) -> None:
        self.run, self.draft, self.record = run, draft, record
        self.journal = draft.journal if draft else None
        self.fold, self.orders = Fold(run.skeleton.family, run.skeleton.heads), dict[str, Tensor]()
        for entry in self.journal.entries if self.journal else ():
            self._take(entry)
            run.stages.seconds.update(entry.stages)
            record.seconds = entry.seconds

    def take_orders(self, folded: dict[str, Tensor], inputs: Callable[[], Inputs] | None) -> None:
        """Find the orders that must be known before the first block, or take them from the journal."""
        ranks, journal = self.run.ranks, self.journal
        kept = journal.entries[0] if journal and journal.entries else None
        orders, blocks = ranks.led(lambda: (kept.orders, kept.blocks) if kept else ({}, None))
        if blocks is None:
            orders, blocks = find_orders(self.run, inputs() if inputs else None), 0
            first = Entry(0, {name: order.cpu() for name, order in orders.items()})
            self._take(first)
            if journal and orders:
                journal.add(first, {})
        if blocks == 0:  # where there are none, the journal begins with the first block
            folded.update({name: order.to(self.run.device) for name, order in orders.items()})

    def spec(self, given: Inputs) -> Spec:
        """What the hidden states of all ranks are."""
        return Spec(given.hidden.dtype, (given.cut.windows, *given.hidden.shape[1:]))

    def keep(self, result: BlockResult) -> None:
        """Fold a block and put it on disk, on the rank that writes; the others hand it their hidden states."""
        run = self.run
        entry, part = Entry(result.index + 1, result.orders, result.records), None
        with run.stages.timed("write"):
            self._take(entry)
            if self.draft:
                part = self._write(self.draft, entry, result)
        if self.journalled:
            with run.stages.timed("journal"):
                entry.stages, stream = dict(run.stages.seconds), dict[str, tuple[Spec, Iterable[Tensor]]]()
                if self.given and entry.blocks < run.plan.blocks:
                    beside = {"dense": run.dense.hidden} if run.dense else {}
                    for name, hidden in {"hidden": self.given.hidden, **beside}.items():
                        stream[name] = self.spec(self.given), run.ranks.rows(hidden)
                if self.journal:
                    self.journal.add(entry, stream, part)

    def _write(self, draft: Draft, entry: Entry, result: BlockResult) -> Path:
        tensors = {name: self.fold.apply(name, tensor) for name, tensor in result.tensors.items()}
        pruned = {f"{matrix['name']}.weight" for matrix in result.records}
        _check_cast({name: tensor for name, tensor in tensors.items() if name in pruned | result.tuned})
        entry.tuned = sorted(result.tuned - pruned)
        entry.untouched = {n: sha256_of(t) for n, t in tensors.items() if n not in pruned | result.tuned}
        self.record.untouched.update(entry.untouched)
        self.record.tuned.extend(entry.tuned)
        return draft.write_block(result.index, self.run.shards.to_stored(tensors))

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
        if not finite(tensor):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise NumericsError(
                f"{name}: an updated weight lies beyond {torch.finfo(tensor.dtype).max:g}, the largest that {kind} "
                "holds; prune a bfloat16 or float32 copy of the model"
            )
