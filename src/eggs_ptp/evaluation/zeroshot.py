"""Accuracy in zero-shot tasks."""

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
    """What a model scored in a task: of each metric one number an item, in the order of the items.

    `acc`: the choice of the highest likelihood is right; `acc_norm`: that of the highest likelihood a character.
    `sha256` is that of the items' prompts, choices and answers: results with the same one can be paired.
    """

    name: str
    sha256: str
    scores: Mapping[str, tuple[float, ...]]
    truncated: int  # items that lost the begin of a context, longer than the model's

    @property
    def items(self) -> int:
        """How many items."""
        return len(next(iter(self.scores.values())))

    def mean(self, metric: str) -> Estimate:
        """Mean of a metric over the items, and its standard error, the items' deviation over sqrt(items)."""
        return estimate(self.scores[metric], [1] * self.items)

    def to_record(self) -> dict[str, Any]:
        """Plain data, with the score of every item."""
        metrics = {
            metric: {**self.mean(metric).to_dict(), "scores": list(scores)} for metric, scores in self.scores.items()
        }
        return {"items": self.items, "truncated": self.truncated, "sha256": self.sha256, "metrics": metrics}

    @classmethod
    def from_record(cls, name: str, record: Mapping[str, Any]) -> "TaskResult":
        """The reverse of `to_record`."""
        scores = {metric: tuple(found["scores"]) for metric, found in record["metrics"].items()}
        return cls(name, record["sha256"], scores, record["truncated"])


def zero_shot(
    model: Any,
    tokenizer: Any,
    tasks: Mapping[str, Any],
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, TaskResult]:
    """Run tasks of lm-eval as they define themselves, which is zero-shot for those of the papers; see `harness`.

    Raises:
        CalibrationError: a task that no accuracy is defined for.
        NumericsError: a likelihood is NaN or infinite.
    """
    if not tasks:
        return {}
    samples, cut = run_tasks(model, tokenizer, tasks, limit=limit, progress=progress)
    return {name: _result(name, found, cut) for name, found in samples.items()}


def _result(name: str, samples: Sequence[dict[str, Any]], cut: frozenset[tuple[str, str]]) -> TaskResult:
    first = samples[0]
    kept = sorted((one for one in samples if one["filter"] == first["filter"]), key=lambda one: int(one["doc_id"]))
    metrics = [metric for metric in METRICS if isinstance(first.get(metric), int | float)]
    if not metrics:
        raise CalibrationError(f"task {name} has no accuracy: expected one of {', '.join(METRICS)} among its metrics")
    digest = hashlib.sha256()
    for one in kept:
        digest.update(repr((one["arguments"], one["target"])).encode())
    truncated = sum(any(tuple(pair) in cut for pair in one["arguments"]) for one in kept)
    scores = {key: tuple(float(one[key]) for one in kept) for key in metrics}
    return TaskResult(name, digest.hexdigest(), scores, truncated)
