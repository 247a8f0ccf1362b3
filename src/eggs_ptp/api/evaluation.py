"""The Python API: load and evaluate."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eggs_ptp.api.inputs import evaluation_text_of, find
from eggs_ptp.checkpoint.staging import ORDERS
from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.assessment import Assessment
from eggs_ptp.evaluation.assessment import assess as assess_models
from eggs_ptp.evaluation.begin_rule import BeginRule
from eggs_ptp.evaluation.evaluation_record import read_evaluation_record
from eggs_ptp.evaluation.harness import load_tasks
from eggs_ptp.evaluation.model_under_test import load_model_under_test
from eggs_ptp.evaluation.perplexity import Perplexity, Progress
from eggs_ptp.evaluation.window import Protocol


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
        str(model), find(str(model)), device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    return loaded.model, loaded.tokenizer


def evaluate(
    model: str | Path,
    text: str | Path | None = None,
    *,
    protocol: Protocol | None = None,
    seqlen: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    begin: BeginRule = "auto",
    text_field: str = "text",
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Perplexity:
    """Measure the perplexity of a model on a text (see `evaluation.perplexity`).

    Args:
        model: A folder, a hub name, or `demo`.
        text: A local file, `wikitext2` or `c4` (of the hub), or `demo`, the default for the demo model and what was
            pruned from it; for every other model the default is `wikitext2`.
        protocol: "packed": windows of the joined text; "documents": each document by itself. Default: the text's own.
        seqlen: Tokens of each window. Default: 2048, or the model's context if shorter.
        stride: Tokens between the starts of packed windows. Default: `seqlen`.
        max_windows: Evaluate only the first windows or documents.
        begin: Whether packed windows begin with the begin token: "always"; "never", as in papers; or "auto": only for
            models that are broken without it.
        text_field: Field of a row that holds the text.
        device: Where to compute; "auto" is a GPU if there is one.
        dtype: "auto" is float32 on the CPU and the stored type elsewhere.
        trust_remote_code: Whether the checkpoint's own code may run.
        progress: Called with the number of windows done, and of all.

    Raises:
        EggsError: There is no such model or text, or the text is shorter than one window.
    """
    perplexity = assess(
        model,
        text,
        protocol=protocol,
        seqlen=seqlen,
        stride=stride,
        max_windows=max_windows,
        begin=begin,
        text_field=text_field,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        progress=progress,
    ).results.perplexity
    if perplexity is None:
        raise CalibrationError("tasks without a text give no perplexity; name a text, or call assess")
    return perplexity


def assess(
    model: str | Path,
    text: str | Path | None = None,
    *,
    against: str | Path | None = None,
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    limit: int | None = None,
    protocol: Protocol | None = None,
    seqlen: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    begin: BeginRule = "auto",
    text_field: str = "text",
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    on_memory: Callable[[int], None] | None = None,
) -> Assessment:
    """Measure perplexity and lm-eval's tasks, also in comparison with the model it was made from.

    Args:
        model: A folder, a hub name, or `demo`.
        text: As in `evaluate`; none if only `tasks` are requested.
        against: The dense model, or the record of its evaluation.
        tasks: Names of lm-eval's tasks; `*_local` are read from files in `data`.
        data: Folder of local tasks.
        limit: Use only the first items of each task.
        protocol: "packed": windows of the joined text; "documents": each document by itself. Default: the text's own.
        seqlen: Tokens of each window. Default: 2048, or the context of both models if shorter.
        stride: Tokens between the starts of packed windows. Default: `seqlen`.
        max_windows: Evaluate only the first windows or documents.
        begin: Whether packed windows begin with the begin token: "always"; "never", as in papers; or "auto": only for
            models that are broken without it.
        text_field: Field of the rows that holds the text.
        device: Where to compute; "auto" is a GPU if there is one.
        dtype: "auto" is float32 on the CPU and the stored type elsewhere.
        trust_remote_code: Whether the checkpoint's own code may run.
        progress: Called with the number of windows or items done, and of all.
        on_memory: Called before the first window with the bytes that the process is expected to take at its peak.

    Raises:
        EggsError: There is no such model, text or task, or the two models cannot be compared.
    """
    folder = find(str(model))
    loaded_tasks = load_tasks(tasks, Path(data) if data is not None else None)
    evaluation_text = None
    if text is not None or not loaded_tasks:
        name = None if text is None else str(text)
        evaluation_text = evaluation_text_of(folder, name, text_field, trust_remote_code)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    record = read_evaluation_record(Path(against)) if against is not None and Path(against).is_file() else None
    models = [load_model_under_test(str(model), folder, folder / ORDERS, **options)]
    if against is not None and record is None:
        reference = find(str(against))
        models.append(load_model_under_test(str(against), reference, reference / ORDERS, **options))
    return assess_models(
        *models,
        text=evaluation_text,
        tasks=loaded_tasks,
        limit=limit,
        record=record,
        protocol=protocol,
        seqlen=seqlen,
        stride=stride,
        max_windows=max_windows,
        begin=begin,
        progress=progress,
        on_memory=on_memory,
    )
