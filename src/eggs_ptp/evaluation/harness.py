"""EleutherAI's lm-eval: loads its tasks, from the hub or from local files, and runs a model on them."""

import contextlib
import importlib.resources
import importlib.util
import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from eggs_ptp.core.json_file import JSON_ERRORS
from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.continuation import SCORE_TOKENS, continuation_scores
from eggs_ptp.evaluation.perplexity import Progress

PAPER_TASKS: Final = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""The seven tasks of the papers, by lm-eval's names."""
LOCAL_TASKS: Final = tuple(f"{name}_local" for name in PAPER_TASKS)
"""The same tasks, reading local files."""
TASK_FOLDER: Final = Path(str(importlib.resources.files("eggs_ptp.evaluation") / "tasks"))
"""Definitions of the local tasks."""
# Folders of the papers' tasks in lm-eval, if they are not called like the task.
_FOLDERS: Final = {"boolq": "super_glue/boolq", "rte": "glue/rte", "arc_easy": "arc", "arc_challenge": "arc"}
_FEWSHOT_SEED = 1234  # lm-eval's default; zero-shot draws nothing with it


def load_tasks(names: Sequence[str], data: Path | None) -> dict[str, Any]:
    """Load tasks of lm-eval.

    Args:
        names: Names of tasks. Those that end in `_local` read files, others the hub.
        data: Folder with the files of local tasks.

    Returns:
        lm-eval's task objects by name.

    Raises:
        CalibrationError: lm-eval is not installed, a task does not exist, or its data cannot be loaded.
    """
    if not names:
        return {}
    if importlib.util.find_spec("lm_eval") is None:
        raise CalibrationError("zero-shot tasks need EleutherAI's lm-eval, which is not installed: pip install lm-eval")
    for name in names:
        if name.endswith("_local") and name not in LOCAL_TASKS:
            raise CalibrationError(f"there is no local task {name}; choose from {', '.join(LOCAL_TASKS)}")
    definitions = {name: _local_definition(name, data) for name in names if name in LOCAL_TASKS}
    with silenced_lm_eval():
        manager = _task_manager([name for name in names if name not in definitions])
        tasks: dict[str, Any] = {}
        for name in names:
            tasks.update(_load_task(manager, name, definitions.get(name)))
        for task in tasks.values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return tasks


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Any],
    *,
    limit: int | None = None,
    batch_tokens: int = SCORE_TOKENS,
    progress: Progress | None = None,
) -> tuple[dict[str, list[dict[str, Any]]], frozenset[tuple[str, str]]]:
    """Run a model on tasks of lm-eval, which makes the requests and the metrics.

    Likelihoods are computed by `continuation_scores`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        tasks: lm-eval's task objects by name.
        limit: Take only this many documents of each task, from the start.
        batch_tokens: Most tokens in a forward pass.
        progress: Called after each forward pass.

    Returns:
        lm-eval's samples of each task, one a document with its metrics; and the requests (context, continuation) that
        were longer than the model's context and lost their beginning, as in lm-eval.

    Raises:
        NumericsError: A likelihood is NaN or infinite.
    """
    with silenced_lm_eval():
        from lm_eval import evaluator

        scorer = make_scorer(model, tokenizer, batch_tokens=batch_tokens, progress=progress)
        results = evaluator.evaluate(scorer, {"tasks": dict(tasks)}, limit=limit, bootstrap_iters=0, log_samples=True)
    samples: dict[str, list[dict[str, Any]]] = results["samples"]
    return samples, scorer.truncated


def make_scorer(
    model: Any, tokenizer: Any, *, batch_tokens: int = SCORE_TOKENS, progress: Progress | None = None
) -> Any:
    """Make lm-eval's Hugging Face model with likelihoods from `continuation_scores`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        batch_tokens: Most tokens in a forward pass.
        progress: Called after each forward pass.
    """
    from lm_eval.models.huggingface import HFLM

    class Scorer(HFLM):  # type: ignore[misc]
        truncated: frozenset[tuple[str, str]] = frozenset()

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            pairs = [(before, after) for _, before, after in requests]
            self.truncated = frozenset(
                texts for texts, before, after in requests if len(before) + len(after) > self.max_length + 1
            )
            options = {"context": self.max_length, "batch_tokens": batch_tokens, "progress": progress}
            with contextlib.redirect_stderr(stderr):
                return [tuple(score) for score in continuation_scores(self.model, pairs, **options)]

    stderr = getattr(sys.stderr, "real_stderr", sys.stderr)  # for our progress, while lm-eval's bars are silenced
    return Scorer(pretrained=model, tokenizer=tokenizer, batch_size=1)


@contextlib.contextmanager
def silenced_lm_eval() -> Iterator[None]:
    """Silence lm-eval's log messages and progress bars, and transformers' warnings of long texts."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    discarded = io.StringIO()
    discarded.real_stderr = getattr(sys.stderr, "real_stderr", sys.stderr)  # type: ignore[attr-defined]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(discarded):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _task_manager(names: Sequence[str]) -> Any:
    """Make lm-eval's index of tasks.

    Indexing all tasks takes ten seconds, so if all names are tasks of the papers, only their folders are indexed.
    """
    from lm_eval import tasks

    folders = [Path(tasks.__file__).parent / _FOLDERS.get(name, name) for name in names]
    are_known = all(name in PAPER_TASKS for name in names) and all(folder.is_dir() for folder in folders)
    return tasks.TaskManager(include_defaults=not are_known, include_path=folders if are_known else None)


def _load_task(manager: Any, name: str, definition: dict[str, Any] | None) -> dict[str, Any]:
    try:
        tasks: dict[str, Any] = manager.load([definition or name])["tasks"]
    except Exception as error:  # datasets, the hub and templates raise errors of any kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if definition:
            raise CalibrationError(
                f"task {name}: {definition['dataset_name']} does not have the rows that the task reads ({reason}); "
                "docs/evaluating.md lists their keys"
            ) from error
        if isinstance(error, KeyError):
            raise CalibrationError(
                f"lm-eval has no task {name}; the papers' tasks are {', '.join(PAPER_TASKS)}, which need a network, "
                "and read files with _local after the name (--data FOLDER)"
            ) from error
        alternative = f"use {name}_local with --data FOLDER, or " if name in PAPER_TASKS else ""
        raise CalibrationError(
            f"the data of task {name} cannot be loaded ({reason}); {alternative}check the network"
        ) from error
    return tasks


def _local_definition(name: str, data: Path | None) -> dict[str, Any]:
    """Return the definition of a local task, with its documents read from the folder `data`."""
    import yaml

    definition: dict[str, Any] = yaml.safe_load((TASK_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    file = definition["dataset_kwargs"]["data_files"]["validation"]
    if data is None:
        raise CalibrationError(f"task {name} reads {file} from a local folder; pass --data FOLDER")
    path = data / file
    if not path.is_file():
        raise CalibrationError(f"task {name}: there is no file {path}; put {file} there, or pass another --data FOLDER")
    rows = _read_rows(path)
    del definition["dataset_kwargs"]

    def documents(**_: Any) -> dict[str, Any]:
        import datasets

        return {"validation": datasets.Dataset.from_list(rows)}

    return {**definition, "dataset_name": str(path), "custom_dataset": documents}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object a line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise CalibrationError(f"{path}, line {number}: not JSON: {error.msg}; expected an object") from None
            except JSON_ERRORS as error:
                raise CalibrationError(f"{path}, line {number}: cannot be read as JSON: {error}") from None
    if not rows or not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise CalibrationError(f"{path}: expected one JSON object a line, all with the same keys, and at least one")
    return rows
