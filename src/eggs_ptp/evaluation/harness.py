"""EleutherAI's lm-eval: its tasks from the hub, the seven of the papers from local files, and one model on them."""

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

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.continuation import SCORE_TOKENS, continuation_scores
from eggs_ptp.evaluation.perplexity import Progress
from eggs_ptp.models.json_file import JSON_FAULTS

TASKS: Final = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""The seven of the papers, by lm-eval's names."""
LOCAL: Final = tuple(f"{name}_local" for name in TASKS)
_HOMES: Final = {"boolq": "super_glue/boolq", "rte": "glue/rte", "arc_easy": "arc", "arc_challenge": "arc"}
FOLDER: Final = Path(str(importlib.resources.files("eggs_ptp.evaluation") / "tasks"))
_SHOT_SEED = 1234  # lm-eval's own; zero-shot draws nothing with it


def load_tasks(names: Sequence[str], data: Path | None) -> dict[str, Any]:
    """lm-eval's task objects by name: from the hub, or `*_local` ones from the files in the folder `data`.

    Raises:
        CalibrationError: lm-eval is not installed, there is no such task, or its data are not there.
    """
    if not names:
        return {}
    if importlib.util.find_spec("lm_eval") is None:
        raise CalibrationError("zero-shot tasks need EleutherAI's lm-eval, which is not installed: pip install lm-eval")
    for name in names:
        if name.endswith("_local") and name not in LOCAL:
            raise CalibrationError(f"there is no local task {name}; there are {', '.join(LOCAL)}")
    files = {name: _definition(name, data) for name in names if name in LOCAL}
    with quiet():
        manager = _manager([name for name in names if name not in files])
        found: dict[str, Any] = {}
        for name in names:
            found.update(_load(manager, name, files.get(name)))
        for task in found.values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_SHOT_SEED)
    return found


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Any],
    *,
    limit: int | None = None,
    batch_tokens: int = SCORE_TOKENS,
    progress: Progress | None = None,
) -> tuple[dict[str, list[dict[str, Any]]], frozenset[tuple[str, str]]]:
    """lm-eval's samples of each task, one a document with its metrics, and the requests that lost their begin.

    Those (context, continuation) are longer than the model's context, and keep their end, as in lm-eval. It makes the
    requests, their tokens and the metrics; likelihoods are computed by `continuation_scores`. `limit` takes the first
    documents of each task.

    Raises:
        NumericsError: a likelihood is NaN or infinite.
    """
    with quiet():
        from lm_eval import evaluator

        scorer = scorer_for(model, tokenizer, batch_tokens=batch_tokens, progress=progress)
        found = evaluator.evaluate(scorer, {"tasks": dict(tasks)}, limit=limit, bootstrap_iters=0, log_samples=True)
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    return samples, scorer.cut


def scorer_for(
    model: Any, tokenizer: Any, *, batch_tokens: int = SCORE_TOKENS, progress: Progress | None = None
) -> Any:
    """lm-eval's own Hugging Face model, whose likelihoods come from `continuation_scores`."""
    from lm_eval.models.huggingface import HFLM

    class Scorer(HFLM):  # type: ignore[misc]
        cut: frozenset[tuple[str, str]] = frozenset()

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            pairs = [(before, after) for _, before, after in requests]
            long = self.max_length + 1
            self.cut = frozenset(texts for texts, before, after in requests if len(before) + len(after) > long)
            how = {"context": self.max_length, "batch_tokens": batch_tokens, "progress": progress}
            with contextlib.redirect_stderr(stderr):
                return [tuple(score) for score in continuation_scores(self.model, pairs, **how)]

    stderr = getattr(sys.stderr, "behind", sys.stderr)  # where our progress goes while lm-eval's bars go nowhere
    return Scorer(pretrained=model, tokenizer=tokenizer, batch_size=1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's remarks and progress bars."""
    logs = [logging.getLogger(name) for name in ("lm_eval", "transformers")]  # the latter of long texts, see `cut`
    levels, nowhere = [log.level for log in logs], io.StringIO()
    nowhere.behind = getattr(sys.stderr, "behind", sys.stderr)  # type: ignore[attr-defined]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(nowhere):
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _manager(names: Sequence[str]) -> Any:
    """lm-eval's index of tasks; that of all takes ten seconds, so the papers' are looked up where they are."""
    from lm_eval import tasks

    homes = [Path(tasks.__file__).parent / _HOMES.get(name, name) for name in names]
    known = all(name in TASKS for name in names) and all(home.is_dir() for home in homes)
    return tasks.TaskManager(include_defaults=not known, include_path=homes if known else None)


def _load(manager: Any, name: str, definition: dict[str, Any] | None) -> dict[str, Any]:
    try:
        found: dict[str, Any] = manager.load([definition or name])["tasks"]
    except Exception as error:  # datasets, the hub and templates raise what they like
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if definition:
            raise CalibrationError(
                f"task {name}: {definition['dataset_name']} does not have the rows that the task reads ({reason})"
            ) from error
        if isinstance(error, KeyError):
            raise CalibrationError(
                f"lm-eval has no task {name}; those of the papers are {', '.join(TASKS)} (with a network), and the "
                "same with _local behind the name from files (--data FOLDER)"
            ) from error
        instead = f"use {name}_local with --data FOLDER, or " if name in TASKS else ""
        raise CalibrationError(
            f"the data of task {name} cannot be had ({reason}); {instead}check the network"
        ) from error
    return found


def _definition(name: str, data: Path | None) -> dict[str, Any]:
    """A shipped task file, its documents read from the folder `data`."""
    import yaml

    found: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    file = found["dataset_kwargs"]["data_files"]["validation"]
    if data is None:
        raise CalibrationError(f"task {name} reads {file} from a folder of yours: pass --data FOLDER")
    path = data / file
    if not path.is_file():
        raise CalibrationError(f"task {name}: there is no file {path}; put {file} there, or pass another --data FOLDER")
    rows = _rows(path)
    del found["dataset_kwargs"]

    def documents(**_: Any) -> dict[str, Any]:
        import datasets

        return {"validation": datasets.Dataset.from_list(rows)}

    return {**found, "dataset_name": str(path), "custom_dataset": documents}


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise CalibrationError(f"{path}, line {number}: not JSON: {error.msg}; expected an object") from None
            except JSON_FAULTS as error:
                raise CalibrationError(f"{path}, line {number}: cannot be read as JSON: {error}") from None
    if not rows or not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise CalibrationError(f"{path}: expected one JSON object a line, all with the same keys, and at least one")
    return rows
