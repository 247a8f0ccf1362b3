"""The Python API: plan and prune."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from eggs_ptp.api.inputs import calibration_windows, check_calibration_source, find, requested_recipe
from eggs_ptp.calibration.tokens import begin_tokens
from eggs_ptp.calibration.windows import is_token_file
from eggs_ptp.checkpoint.block_writer import write_blocks
from eggs_ptp.checkpoint.card import check_base_model, write_card
from eggs_ptp.checkpoint.run_record import RunRecord
from eggs_ptp.checkpoint.staging import StagingFolder, check_apart, check_space
from eggs_ptp.core.pattern import AnyPattern
from eggs_ptp.engine.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from eggs_ptp.engine.event import Listener, ignore
from eggs_ptp.engine.planning.device import find_device, find_dtype
from eggs_ptp.engine.planning.make_plan import make_plan
from eggs_ptp.engine.planning.memory_budget import parse_memory
from eggs_ptp.engine.planning.plan import Plan
from eggs_ptp.engine.preparation import SharedInputs, first_block_inputs, make_context
from eggs_ptp.engine.resources import MemoryMonitor, limited_memory, trim_memory
from eggs_ptp.engine.tensors.fused_experts import open_dense
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.folder import card_metadata, commit_of, read_config
from eggs_ptp.models.load import Skeleton, load_skeleton, load_tokenizer
from eggs_ptp.recipe.recipe import Recipe, TargetRule


def plan(
    model: str,
    recipe: Recipe | None = None,
    *,
    method: str | None = None,
    pattern: str | float | AnyPattern | None = None,
    calibration: str | Path | None = None,
    nsamples: int | None = None,
    seqlen: int | None = None,
    sampling: Literal["packed", "documents"] | None = None,
    begin: Literal["auto", "never"] | None = None,
    text_field: str | None = None,
    seed: int | None = None,
    permutation: Literal["fold", "gather", "mask"] | None = None,
    orders: Literal["fold", "gather", "mask"] | None = None,
    share: Literal["consumers", "matrix"] | None = None,
    mask: str | Path | None = None,
    steps: Mapping[str, Any] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    targets: Sequence[TargetRule | Mapping[str, Any]] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    memory: int | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Plan:
    """Decide what `prune` would do to every matrix, and estimate its cost; no weight is read.

    Args:
        model: A folder, a hub name, or `demo`.
        recipe: What to do, in place of the settings of a recipe that follow.
        method: Pruning method; `eggs methods` lists them. Default: eggs+.
        pattern: N:M, or a sparsity such as 0.5. Default: 2:4.
        calibration: Calibration text: a file, or a data set of the hub. Default: C4; for demo its built-in text.
        nsamples: Calibration windows. Default: 128.
        seqlen: Tokens of each window. Default: 2048, or the model's context if shorter.
        sampling: How windows are drawn, see `CalibrationSpec`. Default: packed.
        begin: Whether windows begin with the begin token, see `CalibrationSpec`. Default: auto.
        text_field: Field of a row that holds the text. Default: text.
        seed: Seed of all random choices. Default: 0.
        permutation: How channel permutations are applied, see `Recipe`. Default: fold.
        orders: Former name of `permutation`.
        share: Which matrices share a permutation, see `Recipe`. Default: consumers.
        mask: A file with masks to use in place of the method's own.
        steps: Changes to the method's steps, by slot, such as `{"score": {"alpha": 0.7}}`.
        include: Prune only matrices that match one of these names or globs.
        exclude: Leave matrices that match one of these names or globs dense.
        targets: Rules for single matrices, see `TargetRule`.
        device: Where to compute; "auto" is a GPU if there is one.
        dtype: Type in which blocks are computed; "auto" is float32.
        memory: Most memory of the process, in bytes or as text such as "8GiB"; None for no limit.
        revision: Revision of a hub model.
        trust_remote_code: Whether the checkpoint's own code may run.

    Raises:
        EggsError: The model, the recipe or their combination is not possible; see `engine.planning.make_plan`.
    """
    recipe = requested_recipe(
        model,
        recipe,
        method=method,
        pattern=pattern,
        calibration=calibration,
        nsamples=nsamples,
        seqlen=seqlen,
        sampling=sampling,
        begin=begin,
        text_field=text_field,
        seed=seed,
        permutation=permutation,
        orders=orders,
        share=share,
        mask=mask,
        steps=steps,
        include=include,
        exclude=exclude,
        targets=targets,
    )
    if recipe.calibration.text is not None:  # a plan needs none
        check_calibration_source(recipe)
    return _prepare(
        recipe,
        find(model, revision),
        find_device(device),
        find_dtype(dtype),
        memory=parse_memory(memory),
        trust_remote_code=trust_remote_code,
    ).plan


def prune(
    model: str,
    output: str | Path,
    recipe: Recipe | None = None,
    *,
    method: str | None = None,
    pattern: str | float | AnyPattern | None = None,
    calibration: str | Path | None = None,
    nsamples: int | None = None,
    seqlen: int | None = None,
    sampling: Literal["packed", "documents"] | None = None,
    begin: Literal["auto", "never"] | None = None,
    text_field: str | None = None,
    seed: int | None = None,
    permutation: Literal["fold", "gather", "mask"] | None = None,
    orders: Literal["fold", "gather", "mask"] | None = None,
    share: Literal["consumers", "matrix"] | None = None,
    mask: str | Path | None = None,
    steps: Mapping[str, Any] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    targets: Sequence[TargetRule | Mapping[str, Any]] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    memory: int | str | None = None,
    overwrite: bool = False,
    journal: bool = False,
    revision: str | None = None,
    base_model: str | None = None,
    trust_remote_code: bool = False,
    listener: Listener = ignore,
    on_plan: Callable[[Plan], None] = lambda _plan: None,
    shared: SharedInputs | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> RunRecord:
    """Prune a model and write it as a Hugging Face folder.

    The output folder appears when it is complete. If anything fails, nothing is left but, with `journal`, what the same
    call resumes from.

    Args:
        model: A folder, a hub name, or `demo`.
        output: The folder to write.
        recipe: What to do, in place of the settings of a recipe that follow.
        method: Pruning method; `eggs methods` lists them. Default: eggs+.
        pattern: N:M, or a sparsity such as 0.5. Default: 2:4.
        calibration: Calibration text: a file, or a data set of the hub. Default: C4; for demo its built-in text.
        nsamples: Calibration windows. Default: 128.
        seqlen: Tokens of each window. Default: 2048, or the model's context if shorter.
        sampling: How windows are drawn, see `CalibrationSpec`. Default: packed.
        begin: Whether windows begin with the begin token, see `CalibrationSpec`. Default: auto.
        text_field: Field of a row that holds the text. Default: text.
        seed: Seed of all random choices. Default: 0.
        permutation: How channel permutations are applied, see `Recipe`. Default: fold.
        orders: Former name of `permutation`.
        share: Which matrices share a permutation, see `Recipe`. Default: consumers.
        mask: A file with masks to use in place of the method's own.
        steps: Changes to the method's steps, by slot, such as `{"score": {"alpha": 0.7}}`.
        include: Prune only matrices that match one of these names or globs.
        exclude: Leave matrices that match one of these names or globs dense.
        targets: Rules for single matrices, see `TargetRule`.
        device: Where to compute; "auto" is a GPU if there is one.
        dtype: Type in which blocks are computed; "auto" is float32.
        memory: Most memory of the process, libraries included, in bytes or as text such as "8GiB": as many activations
            as necessary go to files, and on Linux the system refuses more. None for no limit.
        overwrite: Whether to replace an existing output folder.
        journal: Whether to keep finished blocks, so that the same call resumes after an interruption.
        revision: Revision of a hub model.
        base_model: Hub name of the dense model, for the model card. Default: the hub name `model`, or for a local
            folder what its own card names.
        trust_remote_code: Whether the checkpoint's own code may run.
        listener: Is notified of progress.
        on_plan: Is called with the plan before anything is computed.
        shared: Calibration windows and first inputs shared by several runs on one model.
        group: The processes that prune together, see `engine.distributed.torchrun.process_group`; each makes the same
            call.

    Returns:
        The record of the run, as in `eggs.json`.

    Raises:
        EggsError: See the kinds in `eggs_ptp.errors`.
        MemoryError: The run takes more than `memory` after all.
    """
    start = time.perf_counter()
    output = Path(output)
    memory_limit = parse_memory(memory)
    check_base_model(base_model)
    writes = group.is_main_process
    folder_to_write = StagingFolder(output, overwrite=overwrite, journal=journal) if writes else nullcontext()
    with MemoryMonitor() as monitor, folder_to_write as staging:
        recipe = requested_recipe(
            model,
            recipe,
            method=method,
            pattern=pattern,
            calibration=calibration,
            nsamples=nsamples,
            seqlen=seqlen,
            sampling=sampling,
            begin=begin,
            text_field=text_field,
            seed=seed,
            permutation=permutation,
            orders=orders,
            share=share,
            mask=mask,
            steps=steps,
            include=include,
            exclude=exclude,
            targets=targets,
        )
        folder = find(model, revision)
        check_apart(output, folder, *(Path(name) for name in (recipe.mask, recipe.calibration.text) if name))
        check_calibration_source(recipe)
        plan, skeleton, reader, tokenizer = _prepare(
            recipe,
            folder,
            find_device(device),
            find_dtype(dtype),
            memory=memory_limit,
            trust_remote_code=trust_remote_code,
        )
        if staging is not None:
            check_space(output, reader, finished_bytes=staging.finished_bytes)
        on_plan(plan)
        context = make_context(plan, skeleton, reader, recipe, listener=listener, group=group, output=output)
        windows = None
        make_inputs = None
        if plan.needs_calibration:
            draw = functools.partial(calibration_windows, skeleton, recipe, plan, tokenizer)
            windows = shared.windows(folder, recipe, plan, draw) if shared else draw()
            del draw, tokenizer  # large ones take memory that the run needs
            trim_memory()  # what tokenising took
            make_inputs = functools.partial(shared.inputs if shared else first_block_inputs, context, windows)
        record = RunRecord(
            source={
                "model": model,
                "revision": revision,
                "commit": commit_of(folder),
                "model_type": plan.model_type,
            },
            recipe=recipe.to_dict(),
            recipe_sha256=recipe.digest(),
            calibration=windows.to_dict() if windows else None,
            # Several processes have a device each.
            device=plan.device if group.world_size == 1 else context.device.type,
            dtype=plan.dtype,
            permutations=plan.permutation,
            batch_tokens=context.plan.budget.batch_tokens,
            memory=memory_limit,
            output=str(output),
        )
        with limited_memory(memory_limit):
            fold, permutations = write_blocks(context, make_inputs, staging, record)
        record.stages = context.times.seconds
        record.seconds += time.perf_counter() - start
        record.peak_memory_bytes = monitor.peak
        record.baseline_memory_bytes = monitor.baseline
        if staging is not None:
            card = write_card(record, read_config(folder), card_metadata(folder), base_model)
            staging.finish(reader, permutations, record.to_dict(), card, fold.pieces)
    return record


class _Prepared(NamedTuple):
    """A plan, and what it was made from."""

    plan: Plan
    skeleton: Skeleton
    reader: CheckpointReader
    tokenizer: Any  # None where no text is to be tokenised


def _prepare(
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    memory: int | None,
    trust_remote_code: bool,
) -> _Prepared:
    skeleton = load_skeleton(folder, trust_remote_code=trust_remote_code)
    reader = open_dense(folder, skeleton.ties)
    plan = make_plan(skeleton, reader, recipe, device=device, dtype=dtype, memory=memory)
    if not plan.needs_calibration or is_token_file(recipe.calibration.text):
        return _Prepared(plan, skeleton, reader, None)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if recipe.calibration.begin == "auto":
        plan = dataclasses.replace(plan, begin=begin_tokens(tokenizer))
    return _Prepared(plan, skeleton, reader, tokenizer)
