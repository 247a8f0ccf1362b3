"""Accuracy on zero-shot tasks."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.estimate import Estimate, estimate
from eggs_ptp.evaluation.harness import run_tasks
from eggs_ptp.evaluation.perplexity import Progress

METRICS = ("acc", "acc_norm", "exact_match")


@dataclass(frozen=True)
class TaskResult:
    """The scores of a model in one task.

    Attributes:
        name: The task.
        sha256: SHA-256 of the items' prompts, choices and answers: results with the same one can be paired.
        scores: The score of each item, by metric. `acc`: the choice with the highest likelihood is right; `acc_norm`:
            the choice with the highest likelihood a character is.
        truncated: Number of items whose context was longer than the model's and lost its beginning.
    """

    name: str
    sha256: str
    scores: Mapping[str, tuple[float, ...]]
    truncated: int

    @property
    def items(self) -> int:
        """Number of items."""
        return len(next(iter(self.scores.values())))

    def mean(self, metric: str) -> Estimate:
        """Return the mean of a metric over the items; its standard error is their deviation over sqrt(items)."""
        return estimate(self.scores[metric], [1] * self.items)

    def to_record(self) -> dict[str, Any]:
        """Return plain data, with the score of every item."""
        metrics = {
            metric: {**self.mean(metric).to_dict(), "scores": list(scores)} for metric, scores in self.scores.items()
        }
        return {"items": self.items, "truncated": self.truncated, "sha256": self.sha256, "metrics": metrics}

    @classmethod
    def from_record(cls, name: str, record: Mapping[str, Any]) -> "TaskResult":
        """Rebuild the result of a task from its `to_record`."""
        scores = {metric: tuple(entry["scores"]) for metric, entry in record["metrics"].items()}
        return cls(name, record["sha256"], scores, record["truncated"])


def zero_shot(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Any],
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, TaskResult]:
    """Run tasks of lm-eval as they are defined, which is zero-shot for those of the papers; see `harness`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        tasks: lm-eval's task objects by name, from `harness.load_tasks`.
        limit: Take only this many items of each task, from the start.
        progress: Called as items are scored.

    Returns:
        The results by task.

    Raises:
        CalibrationError: A task has no accuracy among its metrics.
        NumericsError: A likelihood is NaN or infinite.
    """
    if not tasks:
        return {}
    samples, truncated = run_tasks(model, tokenizer, tasks, limit=limit, progress=progress)
    return {name: _task_result(name, task_samples, truncated) for name, task_samples in samples.items()}


def _task_result(name: str, samples: Sequence[dict[str, Any]], truncated: frozenset[tuple[str, str]]) -> TaskResult:
    """Collect the scores of lm-eval's samples, of the task's first filter, in the order of the documents."""
    first = samples[0]
    filtered = [sample for sample in samples if sample["filter"] == first["filter"]]
    items = sorted(filtered, key=lambda sample: int(sample["doc_id"]))
    metrics = [metric for metric in METRICS if isinstance(first.get(metric), int | float)]
    if not metrics:
        raise CalibrationError(
            f"task {name} has no accuracy: expected one of {', '.join(METRICS)} among its metrics; choose another task"
        )
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr((item["arguments"], item["target"])).encode())
    truncated_items = sum(any(tuple(pair) in truncated for pair in item["arguments"]) for item in items)
    scores = {metric: tuple(float(item[metric]) for item in items) for metric in metrics}
    return TaskResult(name, digest.hexdigest(), scores, truncated_items)
