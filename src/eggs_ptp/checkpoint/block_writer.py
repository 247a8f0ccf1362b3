"""Writes pruned blocks to the output folder, with permutations folded in, and keeps the journal of the run."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from eggs_ptp.checkpoint.journal import Entry, Journal
from eggs_ptp.checkpoint.run_record import RunRecord
from eggs_ptp.checkpoint.staging import StagingFolder
from eggs_ptp.core.finite import is_finite
from eggs_ptp.engine.blocks.inputs import BlockInputs
from eggs_ptp.engine.context import BlockResult, RunContext
from eggs_ptp.engine.event import Event
from eggs_ptp.engine.permutations import find_permutations
from eggs_ptp.engine.pipeline import prune_blocks
from eggs_ptp.engine.statistics.dense_stream import DenseStream
from eggs_ptp.engine.tensors.reader import sha256_of
from eggs_ptp.engine.tensors.writer import TensorSpec
from eggs_ptp.errors import NumericsError
from eggs_ptp.models.fold import Fold


def write_blocks(
    context: RunContext,
    make_inputs: Callable[[], BlockInputs] | None,
    staging: StagingFolder | None,
    record: RunRecord,
) -> tuple[Fold, dict[str, Tensor]]:
    """Prune block after block, and write and record each as soon as it is finished.

    Where the staging folder keeps a journal, the run resumes after the blocks that it has.

    Args:
        context: The run.
        make_inputs: Makes the inputs of the first block; None if no method needs statistics. It may be called twice: a
            run overwrites them, and making them again is faster than keeping a copy.
        staging: The output folder; None on processes that do not write.
        record: The record of the run, completed here.

    Returns:
        The fold of the permutations, and all permutations to be stored.
    """
    group, plan = context.group, context.plan
    journal = staging.open_journal(record, context.reader.folder) if staging else None
    record.batch_tokens = group.broadcast_object(lambda: journal.batch_tokens if journal else record.batch_tokens)
    plan = plan.with_batch_tokens(record.batch_tokens)
    context = replace(context, plan=plan)
    writer = _BlockWriter(context, staging, record)
    permutations = None
    if plan.folds:
        permutations = writer.model_permutations(make_inputs if plan.permutes_model_first else None)
    finished = group.broadcast_object(lambda: journal.blocks if journal else 0)
    inputs = make_inputs() if make_inputs and finished < plan.blocks else None
    dense = None
    if finished:
        dense = _restore(context, journal, inputs, finished, record)
    elif staging and journal:
        hidden_bytes = writer.hidden_spec(inputs).nbytes * (1 + plan.needs_dense) if inputs else 0
        stored_bytes = sum(context.reader.bytes(name) for name in context.reader.names)
        if remark := journal.disk_space_warning(hidden_bytes, stored_bytes):
            context.notify("remark", 0, remark)
            staging.discard_journal(journal)
    writer.inputs = inputs
    writer.has_journal = group.broadcast_object(lambda: bool(staging and staging.journal))
    prune_blocks(context, inputs, permutations, writer.keep, start=finished, dense=dense)
    prefix = f"{context.skeleton.family.blocks}."
    for name in context.reader.names if staging else ():
        if not name.startswith(prefix):
            record.untouched[name] = sha256_of(writer.fold.pieces(name, context.reader.pieces(name)))
    return writer.fold, writer.permutations


def _restore(
    context: RunContext, journal: Journal | None, inputs: BlockInputs | None, finished: int, record: RunRecord
) -> Tensor | None:
    """Overwrite the hidden states by those after the finished blocks; return the dense model's, if it has its own."""
    text = f"resuming after block {finished} of {context.plan.blocks} ({record.output})"
    context.listener(Event("remark", finished, context.plan.blocks, text))
    if not inputs:
        return None
    stored = journal.read_hidden_states() if journal else {}
    context.group.scatter_windows(stored.get("hidden"), inputs.hidden)
    if not context.plan.needs_dense:
        return None
    dense = context.store.copy(inputs.hidden)
    context.group.scatter_windows(stored.get("dense"), dense)
    return dense


class _BlockWriter:
    """Keeps finished blocks: their permutations and records in memory, their tensors on disk, all of it in the journal.

    Attributes:
        inputs: Inputs of the first block to run, whose hidden states every block overwrites by its outputs.
        has_journal: Whether the main process keeps a journal.
        fold: The permutations so far, as they are folded into the weights.
        permutations: The permutations so far, as they are stored.
    """

    def __init__(self, context: RunContext, staging: StagingFolder | None, record: RunRecord) -> None:
        self._context = context
        self._staging = staging
        self._record = record
        self._journal = staging.journal if staging else None
        self.inputs: BlockInputs | None = None
        self.has_journal = False
        self.fold = Fold(context.skeleton.family, context.skeleton.heads)
        self.permutations: dict[str, Tensor] = {}
        for entry in self._journal.entries if self._journal else ():
            self._add(entry)
            context.times.seconds.update(entry.stages)
            record.seconds = entry.seconds

    def model_permutations(self, make_inputs: Callable[[], BlockInputs] | None) -> Mapping[str, Tensor]:
        """Return the permutations that must be known before the first block, from the journal if it has them."""
        group, journal = self._context.group, self._journal
        first_entry = journal.entries[0] if journal and journal.entries else None
        permutations, blocks = group.broadcast_tensors(
            lambda: (first_entry.permutations, first_entry.blocks) if first_entry else ({}, None)
        )
        if blocks is None:
            permutations = find_permutations(self._context, make_inputs() if make_inputs else None)
            blocks = 0
            entry = Entry(0, {space: permutation.cpu() for space, permutation in permutations.items()})
            self._add(entry)
            if journal and permutations:
                journal.add(entry, {})
        if blocks > 0:  # there are no permutations, so the journal begins with the first block
            return {}
        return {space: permutation.to(self._context.device) for space, permutation in permutations.items()}

    def hidden_spec(self, inputs: BlockInputs) -> TensorSpec:
        """Return type and shape of the hidden states of all processes."""
        return TensorSpec(inputs.hidden.dtype, (inputs.shard.windows, *inputs.hidden.shape[1:]))

    def keep(self, result: BlockResult, dense: DenseStream | None) -> None:
        """Fold a block and write it, on the main process; other processes send their hidden states to the journal."""
        times = self._context.times
        entry = Entry(result.index + 1, result.permutations, result.records)
        path = None
        with times.timed("write"):
            self._add(entry)
            if self._staging:
                path = self._write(self._staging, entry, result)
        if self.has_journal:
            with times.timed("journal"):
                entry.stages = dict(times.seconds)
                streams = self._streams(dense) if entry.blocks < self._context.plan.blocks else {}
                if self._journal:
                    self._journal.add(entry, streams, path)

    def _streams(self, dense: DenseStream | None) -> dict[str, tuple[TensorSpec, Iterable[Tensor]]]:
        """The hidden states of all processes' windows, which the next block starts from."""
        if not self.inputs:
            return {}
        hidden = {"hidden": self.inputs.hidden}
        if dense:
            hidden["dense"] = dense.hidden
        spec = self.hidden_spec(self.inputs)
        return {name: (spec, self._context.group.iterate_windows(tensor)) for name, tensor in hidden.items()}

    def _write(self, staging: StagingFolder, entry: Entry, result: BlockResult) -> Path:
        tensors = {name: self.fold.apply(name, tensor) for name, tensor in result.tensors.items()}
        pruned = {f"{matrix['name']}.weight" for matrix in result.records}
        changed = pruned | result.tuned
        _check_cast({name: tensor for name, tensor in tensors.items() if name in changed})
        entry.tuned = sorted(result.tuned - pruned)
        entry.untouched = {name: sha256_of(tensor) for name, tensor in tensors.items() if name not in changed}
        self._record.untouched.update(entry.untouched)
        self._record.tuned.extend(entry.tuned)
        return staging.write_block(result.index, self._context.reader.to_stored(tensors))

    def _add(self, entry: Entry) -> None:
        """Add what an entry has; that of a block that has just run has only permutations and records so far."""
        for name, permutation in entry.permutations.items():
            self.permutations[name] = permutation.to("cpu", torch.int32)
            if self._context.plan.folds:
                self.fold.add(name, permutation)
        self._record.matrices.extend(entry.matrices)
        self._record.untouched.update(entry.untouched)
        self._record.tuned.extend(entry.tuned)


def _check_cast(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are finite in float32 and not in the type that they are stored in.

    Raises:
        NumericsError: Names the first.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise NumericsError(
                f"{name}: an updated weight exceeds {torch.finfo(tensor.dtype).max:g}, the largest number in {dtype}; "
                "prune a bfloat16 or float32 copy of the model"
            )
