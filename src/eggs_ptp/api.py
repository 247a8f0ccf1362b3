"""The verbs in Python: plan, prune, verify, evaluate, load."""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eggs_ptp.calibration.windows import Windows, check_source
from eggs_ptp.checkpoint.block_writer import write_blocks
from eggs_ptp.checkpoint.card import write_card
from eggs_ptp.checkpoint.run_record import RunRecord
from eggs_ptp.checkpoint.staging import ORDERS, StagingFolder, check_apart
from eggs_ptp.checkpoint.unpacked import open_reader
from eggs_ptp.checkpoint.verify import Verification, read_manifest, source_model, verify_folder
from eggs_ptp.demo.builtin import DEMO, builtin_documents, model_folder
from eggs_ptp.engine.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from eggs_ptp.engine.event import Listener, ignore
from eggs_ptp.engine.planning.device import find_device, find_dtype
from eggs_ptp.engine.planning.make_plan import make_plan
from eggs_ptp.engine.planning.plan import Plan
from eggs_ptp.engine.preparation import SharedInputs, draw_windows, first_block_inputs, make_context
from eggs_ptp.engine.resources import MemoryMonitor, limited_memory, trim_memory
from eggs_ptp.engine.tensors.fused_experts import open_dense
from eggs_ptp.engine.tensors.masks import write_masks
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CalibrationError, CheckpointError, RecipeError
from eggs_ptp.evaluation.assessment import Assessment
from eggs_ptp.evaluation.assessment import assess as assess_models
from eggs_ptp.evaluation.evaluation_record import read_evaluation_record
from eggs_ptp.evaluation.harness import load_tasks
from eggs_ptp.evaluation.model_under_test import load_model_under_test
from eggs_ptp.evaluation.perplexity import Perplexity
from eggs_ptp.evaluation.text import EvaluationText, load_text
from eggs_ptp.models.folder import commit_of, find_folder, read_config
from eggs_ptp.models.load import Skeleton, load_skeleton, load_tokenizer
from eggs_ptp.recipe.read import read_recipe
from eggs_ptp.recipe.recipe import Recipe


def plan(
    model: str,
    recipe: Recipe | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    memory: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> Plan:
    """Decide what `prune` would do to every matrix, and estimate its cost; no weight is read.

    Args:
        model: A folder, a hub name, or `demo`.
        recipe: What to do; or `settings`, as in `prune`.
        device: Where to compute; "auto" is a GPU if there is one.
        dtype: Type in which blocks are computed; "auto" is float32.
        memory: Bytes that the process may take; None for no limit.
        revision: Revision of a hub model.
        trust_remote_code: Whether the checkpoint's own code may run.
        **settings: Keys of a recipe.

    Raises:
        EggsError: The model, the recipe or their combination is not possible; see `engine.planning.make_plan`.
    """
    recipe = _recipe(model, recipe, settings)
    if recipe.calibration.text is not None:  # a plan needs none
        _check_source(recipe)
    return _prepare(
        recipe,
        _folder(model, revision),
        find_device(device),
        find_dtype(dtype),
        memory=memory,
        trust_remote_code=trust_remote_code,
    ).plan


def prune(
    model: str,
    output: str | Path,
    recipe: Recipe | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    memory: int | None = None,
    overwrite: bool = False,
    journal: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    listener: Listener = ignore,
    on_plan: Callable[[Plan], None] = lambda _plan: None,
    shared: SharedInputs | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    **settings: Any,
) -> RunRecord:
    """Prune a model and write it as a Hugging Face folder.

    The output folder appears when it is complete. If anything fails, nothing is left but, with `journal`, what the same
    call resumes from.

    Args:
        model: A folder, a hub name, or `demo`.
        output: The folder to write.
        recipe: What to do; or `settings`.
        device: Where to compute; "auto" is a GPU if there is one.
        dtype: Type in which blocks are computed; "auto" is float32.
        memory: Bytes that the process may take, libraries included: as many activations as necessary go to files, and
            on Linux the system refuses more. None for no limit.
        overwrite: Whether to replace an existing output folder.
        journal: Whether to keep finished blocks, so that the same call resumes after an interruption.
        revision: Revision of a hub model.
        trust_remote_code: Whether the checkpoint's own code may run.
        listener: Is notified of progress.
        on_plan: Is called with the plan before anything is computed.
        shared: Calibration windows and first inputs shared by several runs on one model.
        group: The processes that prune together, see `engine.distributed.torchrun.process_group`; each makes the same
            call.
        **settings: Keys of a recipe in place of `recipe`: `method="ria"`, `pattern="4:8"`, `seed=1`,
            `calibration="text.jsonl"`, `nsamples=64`, `steps={"score": {"alpha": 0.7}}`, ...; see
            `recipe.read.read_recipe`.

    Returns:
        The record of the run, as in `eggs.json`.

    Raises:
        EggsError: See the kinds in `eggs_ptp.errors`.
        MemoryError: The run takes more than `memory` after all.
    """
    start = time.perf_counter()
    output = Path(output)
    writes = group.is_main_process
    folder_to_write = StagingFolder(output, overwrite=overwrite, journal=journal) if writes else nullcontext()
    with MemoryMonitor() as monitor, folder_to_write as staging:
        recipe = _recipe(model, recipe, settings)
        folder = _folder(model, revision)
        check_apart(output, folder, *(Path(name) for name in (recipe.mask, recipe.calibration.text) if name))
        _check_source(recipe)
        plan, skeleton, reader = _prepare(
            recipe,
            folder,
            find_device(device),
            find_dtype(dtype),
            memory=memory,
            trust_remote_code=trust_remote_code,
        )
        on_plan(plan)
        context = make_context(plan, skeleton, reader, recipe, listener=listener, group=group, output=output)
        windows = None
        make_inputs = None
        if plan.needs_calibration:
            draw = functools.partial(_draw_windows, skeleton, recipe, plan, trust_remote_code)
            windows = shared.windows(folder, recipe, plan, draw) if shared else draw()
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
            memory=memory,
            output=str(output),
        )
        with limited_memory(memory):
            fold, permutations = write_blocks(context, make_inputs, staging, record)
        record.stages = context.times.seconds
        record.seconds += time.perf_counter() - start
        record.peak_memory_bytes = monitor.peak
        record.baseline_memory_bytes = monitor.baseline
        if staging is not None:
            card = write_card(record, read_config(folder))
            staging.finish(reader, permutations, record.to_dict(), card, fold.pieces)
    return record


class _Prepared(NamedTuple):
    """A plan, and what it was made from."""

    plan: Plan
    skeleton: Skeleton
    reader: CheckpointReader


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
    return _Prepared(plan, skeleton, reader)


def find(model: str) -> Path:
    """Return the local folder of a model.

    Args:
        model: A folder, a hub name, or `demo`.

    Raises:
        ModelError: It is neither a folder nor a hub name that can be reached.
    """
    return _folder(model)


def verify(folder: str | Path, against: str | None = None, *, pattern: str | None = None) -> Verification:
    """Reopen a pruned folder and check it.

    Args:
        folder: The pruned folder.
        against: The model it was made from, for a comparison tensor by tensor.
        pattern: The pattern that its matrices should satisfy, where no record says so.

    Raises:
        CheckpointError: Nothing says what the folder should be.
        ModelError: One of the two is no model folder.
    """
    return verify_folder(Path(folder), _folder(against) if against else None, pattern)


def export_masks(folder: str | Path, output: str | Path) -> int:
    """Write the keep masks of a pruned folder's matrices (nonzero weights), one bit per weight; return their number.

    Masks are in the column order of the folder itself, which differs from the source's where permutations were folded.

    Raises:
        CheckpointError: The folder has no record, or the file cannot be written.
        ModelError: It is no model folder.
    """
    path = find_folder(str(folder))
    reader = open_reader(path)
    masks = {}
    for matrix in read_manifest(path)["matrices"]:
        mask = reader.read(f"{matrix['name']}.weight") != 0
        if mask.ndim != 2:
            raise CheckpointError(
                f"{path}: {matrix['name']} is recorded as a matrix, but has shape {tuple(mask.shape)}"
            )
        masks[matrix["name"]] = mask.T if matrix.get("transposed") else mask
    write_masks(masks, Path(output))
    return len(masks)


def load(
    model: str | Path, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Load a model and its tokenizer for evaluation.

    Args:
        model: A folder, a hub name, or `demo`.
        device: Where to; "auto" is a GPU if there is one.
        dtype: "auto" is float32 on the CPU and the stored type elsewhere.
        trust_remote_code: Whether the checkpoint's own code may run.

    Raises:
        ModelError: The folder cannot be loaded.
    """
    loaded = load_model_under_test(
        str(model), _folder(str(model)), device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    return loaded.model, loaded.tokenizer


def evaluate(model: str | Path, text: str | None = None, **measures: Any) -> Perplexity:
    """Measure the perplexity of a model on a text (see `evaluation.perplexity`).

    Args:
        model: A folder, a hub name, or `demo`.
        text: A local file, `wikitext2` or `c4` (of the hub), or `demo`, the default for the demo model and what was
            pruned from it; for every other model the default is `wikitext2`.
        **measures: The other arguments of `assess`. `protocol` defaults to `documents` for .jsonl and to `packed`
            otherwise, `seqlen` to min(2048, the model's context).

    Raises:
        EggsError: There is no such model or text, or the text is shorter than one window.
    """
    perplexity = assess(model, text, **measures).results.perplexity
    if perplexity is None:
        raise CalibrationError("tasks without a text give no perplexity; name a text, or call assess")
    return perplexity


def assess(
    model: str | Path,
    text: str | None = None,
    *,
    against: str | Path | None = None,
    tasks: Sequence[str] = (),
    data: Path | None = None,
    text_field: str = "text",
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    **measures: Any,
) -> Assessment:
    """Measure perplexity and lm-eval's tasks, also in comparison with the model it was made from.

    Args:
        model: A folder, a hub name, or `demo`.
        text: As in `evaluate`; none if only `tasks` are requested.
        against: The dense model, or the record of its evaluation.
        tasks: Names of lm-eval's tasks; `*_local` are read from files in `data`.
        data: Folder of local tasks.
        text_field: Field of the rows that holds the text.
        device: Where to compute; "auto" is a GPU if there is one.
        dtype: "auto" is float32 on the CPU and the stored type elsewhere.
        trust_remote_code: Whether the checkpoint's own code may run.
        **measures: limit, protocol, seqlen, stride, max_windows and progress of `evaluation.assessment.assess`.

    Raises:
        EggsError: There is no such model, text or task, or the two models cannot be compared.
    """
    folder = _folder(str(model))
    loaded_tasks = load_tasks(tasks, data)
    evaluation_text = None
    if text is not None or not loaded_tasks:
        evaluation_text = _evaluation_text(folder, text, text_field, trust_remote_code)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    record = read_evaluation_record(Path(against)) if against is not None and Path(against).is_file() else None
    models = [load_model_under_test(str(model), folder, folder / ORDERS, **options)]
    if against is not None and record is None:
        reference = _folder(str(against))
        models.append(load_model_under_test(str(against), reference, reference / ORDERS, **options))
    return assess_models(*models, text=evaluation_text, tasks=loaded_tasks, record=record, **measures)


def _folder(model: str, revision: str | None = None) -> Path:
    return model_folder() if model == DEMO else find_folder(model, revision)


def _recipe(model: str, recipe: Recipe | None, settings: dict[str, Any]) -> Recipe:
    """Return the requested recipe; the demo model is calibrated on the text that comes with it."""
    if recipe is not None and settings:
        raise RecipeError(f"expected a recipe or settings, got both: a recipe and {', '.join(settings)}")
    recipe = recipe or read_recipe(None, (), **settings)
    if model != DEMO or recipe.calibration.text is not None:
        return recipe
    return recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"text": DEMO})})


def _check_source(recipe: Recipe) -> None:
    """Refuse a calibration text that cannot be there, if a method needs one, before any model is built."""
    methods = [recipe.bound(), *(recipe.bound(rule) for rule in recipe.targets if not rule.skip)]
    if any(method.statistics for method in methods) and recipe.calibration.text != DEMO:
        check_source(recipe.calibration.text)


def _draw_windows(skeleton: Skeleton, recipe: Recipe, plan: Plan, trust_remote_code: bool) -> Windows:
    builtin = builtin_documents("calibration") if recipe.calibration.text == DEMO else None
    windows = draw_windows(skeleton, recipe, plan, builtin, trust_remote_code)
    trim_memory()  # what tokenising took
    return windows


def _evaluation_text(folder: Path, text: str | None, field: str, trust_remote_code: bool) -> EvaluationText:
    is_demo = text == DEMO
    if text is None:
        is_demo = folder == model_folder() or source_model(folder) == DEMO
    if is_demo:
        return EvaluationText(DEMO, builtin_documents("evaluation"))
    return load_text(text, field=field, tokenizer=load_tokenizer(folder, trust_remote_code=trust_remote_code))
