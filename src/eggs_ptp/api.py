"""The verbs in Python: plan, prune, verify, evaluate, load."""

import functools
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from eggs_ptp.calibration.windows import Windows, check_source
from eggs_ptp.checkpoint.blocks import write_blocks
from eggs_ptp.checkpoint.card import write_card
from eggs_ptp.checkpoint.draft import ORDERS, Draft, check_apart
from eggs_ptp.checkpoint.record import RunRecord
from eggs_ptp.checkpoint.unpacked import open_shards
from eggs_ptp.checkpoint.verify import Verification, made_from, read_manifest, verify_folder
from eggs_ptp.demo.builtin import DEMO, builtin_documents, model_folder
from eggs_ptp.engine.event import Listener, ignore
from eggs_ptp.engine.fused import open_dense
from eggs_ptp.engine.masks import write_masks
from eggs_ptp.engine.place import find_device, find_dtype
from eggs_ptp.engine.plan import Plan, plan_run
from eggs_ptp.engine.ranks import ALONE, Ranks
from eggs_ptp.engine.shared import Shared as Shared
from eggs_ptp.engine.start import draw_windows, run_of
from eggs_ptp.engine.usage import MemoryWatch, give_back, limited
from eggs_ptp.errors import CalibrationError, CheckpointError, RecipeError
from eggs_ptp.evaluation.assessment import Assessment
from eggs_ptp.evaluation.assessment import assess as assess_subjects
from eggs_ptp.evaluation.harness import load_tasks
from eggs_ptp.evaluation.perplexity import Perplexity
from eggs_ptp.evaluation.record import read_record
from eggs_ptp.evaluation.subject import load_subject
from eggs_ptp.evaluation.text import Text, find_text
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

    `settings` are those of `prune`, and so is `memory`.

    Raises:
        EggsError: the model, the recipe or their combination is not possible; see `engine.plan.plan_run`.
    """
    where, kind = find_device(device), find_dtype(dtype)
    folder = _folder(model, revision)
    asked = _recipe(model, recipe, settings)
    if asked.calibration.text is not None:
        _check_source(asked)
    skeleton = load_skeleton(folder, trust_remote_code=trust_remote_code)
    shards = open_dense(folder, skeleton.ties)
    return plan_run(skeleton, shards, asked, device=where, dtype=kind, memory=memory)


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
    shared: "Shared | None" = None,
    ranks: Ranks = ALONE,
    **settings: Any,
) -> RunRecord:
    """Prune `model` (a folder, a hub name, or `demo`) and write a Hugging Face folder to `output`.

    Say how by a `recipe`, or by `settings`, the keys of one: `method="ria"`, `pattern="4:8"`, `seed=1`,
    `calibration="text.jsonl"`, `nsamples=64`, `steps={"score": {"alpha": 0.7}}`, ... (see `recipe.read.read_recipe`).

    The folder appears when it is whole; if anything fails, nothing is left behind but, with `journal`, what the same
    call goes on from. `memory` is what the process may take in bytes, libraries and all: activations go to files as far
    as they must, and the system refuses it more (Linux). Runs on one model can share what does not depend on the method
    (`shared`). `ranks`, of `engine.team.joined`, do it together, each by the same call.

    Raises:
        EggsError: see the kinds in `eggs_ptp.errors`; MemoryError: the run takes more than `memory` all the same.
    """
    start = time.perf_counter()
    writing = Draft(Path(output), overwrite=overwrite, journal=journal) if ranks.leads else nullcontext()
    with MemoryWatch() as watch, writing as draft:
        asked, folder = _recipe(model, recipe, settings), _folder(model, revision)
        check_apart(Path(output), folder, *(Path(name) for name in (asked.mask, asked.calibration.text) if name))
        _check_source(asked)
        skeleton = load_skeleton(folder, trust_remote_code=trust_remote_code)
        shards = open_dense(folder, skeleton.ties)
        where, kind = find_device(device), find_dtype(dtype)
        decided = plan_run(skeleton, shards, asked, device=where, dtype=kind, memory=memory)
        run = run_of(decided, skeleton, shards, asked, listener=listener, ranks=ranks, output=Path(output))
        windows, inputs = None, None
        if decided.needs_calibration:
            draw = functools.partial(_windows, skeleton, asked, decided, trust_remote_code)
            windows = shared.windows(folder, asked, decided, draw) if shared else draw()
            inputs = functools.partial(shared.inputs, run, windows) if shared else lambda: run.inputs(windows)
        record = RunRecord(
            {"model": model, "revision": revision, "commit": commit_of(folder), "model_type": decided.model_type},
            asked.to_dict(),
            asked.digest(),
            windows.to_dict() if windows else None,
            **{"output": str(output), "memory": memory, **decided.computing(ranks)},
        )
        with limited(memory):
            fold, orders = write_blocks(run, inputs, draft, record)
        record.stages, record.seconds = run.stages.seconds, record.seconds + time.perf_counter() - start
        record.peak_memory_bytes, record.baseline_memory_bytes = watch.peak, watch.baseline
        if draft is not None:
            draft.finish(shards, orders, record.to_dict(), write_card(record, read_config(folder)), fold.pieces)
    return record


def find(model: str) -> Path:
    """The local folder of a model: a path, a hub name, or `demo`.

    Raises:
        ModelError: neither a folder nor a hub name that can be reached.
    """
    return _folder(model)


def verify(folder: str | Path, against: str | None = None, *, pattern: str | None = None) -> Verification:
    """Reopen a pruned folder and check it; `against` names the model it was made from.

    Raises:
        CheckpointError: nothing says what the folder should be.
        ModelError: one of the two is no model folder.
    """
    return verify_folder(Path(folder), _folder(against) if against else None, pattern)


def export_masks(folder: str | Path, output: str | Path) -> int:
    """Write the keep masks of a pruned folder's matrices (weights that are not zero), one bit a weight; their number.

    They are in the folder's own column order: where orders were folded, not in the source's.

    Raises:
        CheckpointError: the folder has no record, or the file cannot be written.
        ModelError: it is no model folder.
    """
    where = find_folder(str(folder))
    shards = open_shards(where)
    masks = {}
    for matrix in read_manifest(where)["matrices"]:
        kept = shards.read(f"{matrix['name']}.weight") != 0
        if kept.ndim != 2:
            raise CheckpointError(
                f"{where}: {matrix['name']} is recorded as a matrix, but has shape {tuple(kept.shape)}"
            )
        masks[matrix["name"]] = kept.T if matrix.get("transposed") else kept
    write_masks(masks, Path(output))
    return len(masks)


def load(
    model: str | Path, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Load a model and its tokenizer for evaluation; `dtype` "auto" is float32 on the CPU, as stored elsewhere.

    Raises:
        ModelError: the folder cannot be loaded.
    """
    place: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    return load_subject(str(model), _folder(str(model)), **place)[1:3]


def evaluate(model: str | Path, text: str | None = None, **measures: Any) -> Perplexity:
    """Perplexity of a model on a text (see `evaluation.perplexity`).

    `text` is a local file, `wikitext2` or `c4` (of the hub), or `demo`, the default for the demo model and what was
    pruned from it; for every other it is `wikitext2`. `protocol` defaults to `documents` for .jsonl and to `packed`
    otherwise; `seqlen` to min(2048, the model's context). `measures` are the other arguments of `assess`.

    Raises:
        EggsError: no such model or text, or a text shorter than one window.
    """
    found = assess(model, text, **measures).results.perplexity
    if found is None:
        raise CalibrationError("tasks without a text give no perplexity; name a text, or call assess")
    return found


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
    """Perplexity, lm-eval's `tasks`, and the same of the model it was made from (`against`, a model or a record).

    The text is that of `evaluate`, or none where only `tasks` are asked for (`*_local` from files in `data`).
    `measures` are limit, protocol, seqlen, stride, max_windows and progress of `evaluation.assessment.assess`.

    Raises:
        EggsError: no such model, text or task, or two models that cannot be compared.
    """
    folder, found = _folder(str(model)), None
    ready = load_tasks(tasks, data)
    if text is not None or not ready:
        found = _evaluation_text(folder, text, text_field, trust_remote_code)
    place: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    record = read_record(Path(against)) if against is not None and Path(against).is_file() else None
    subjects = [load_subject(str(model), folder, folder / ORDERS, **place)]
    if against is not None and record is None:
        other = _folder(str(against))
        subjects.append(load_subject(str(against), other, other / ORDERS, **place))
    return assess_subjects(*subjects, text=found, tasks=ready, record=record, **measures)


def _folder(model: str, revision: str | None = None) -> Path:
    return model_folder() if model == DEMO else find_folder(model, revision)


def _recipe(model: str, recipe: Recipe | None, settings: dict[str, Any]) -> Recipe:
    """The recipe as asked for; the demo model is calibrated on the text that comes with it."""
    if recipe is not None and settings:
        raise RecipeError(f"give a recipe or settings, not both; came a recipe and {', '.join(settings)}")
    asked = recipe or read_recipe(None, (), **settings)
    if model != DEMO or asked.calibration.text is not None:
        return asked
    return asked.model_copy(update={"calibration": asked.calibration.model_copy(update={"text": DEMO})})


def _check_source(asked: Recipe) -> None:
    """Refuse a calibration text that cannot be there, where a method wants one, before any model is built."""
    methods = [asked.bound(), *(asked.bound(rule) for rule in asked.targets if not rule.skip)]
    if any(method.statistics for method in methods) and asked.calibration.text != DEMO:
        check_source(asked.calibration.text)


def _windows(skeleton: Skeleton, asked: Recipe, decided: Plan, trust_remote_code: bool) -> Windows:
    builtin = builtin_documents("calibration") if asked.calibration.text == DEMO else None
    windows = draw_windows(skeleton, asked, decided, builtin, trust_remote_code)
    give_back()  # what encodings took
    return windows


def _evaluation_text(folder: Path, text: str | None, field: str, trust_remote_code: bool) -> Text:
    builtin = folder == model_folder() or made_from(folder) == DEMO if text is None else text == DEMO
    if builtin:
        return Text(DEMO, builtin_documents("evaluation"))
    return find_text(text, field=field, tokenizer=load_tokenizer(folder, trust_remote_code=trust_remote_code))
