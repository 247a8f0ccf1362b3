"""One model, or one set against another: everything that an evaluation measures, and its record."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from torch import Tensor

from eggs_ptp.errors import CalibrationError, ModelError
from eggs_ptp.evaluation.estimate import Difference, difference
from eggs_ptp.evaluation.fidelity import Fidelity, Follower, follow
from eggs_ptp.evaluation.perplexity import Perplexity, Progress, perplexity_of, window_losses
from eggs_ptp.evaluation.record import FORMAT, KIND
from eggs_ptp.evaluation.subject import Subject
from eggs_ptp.evaluation.text import Text
from eggs_ptp.evaluation.window import EvaluationWindows, Protocol, cut
from eggs_ptp.evaluation.zeroshot import TaskResult, zero_shot


@dataclass(frozen=True)
class Results:
    """What one model came to."""

    perplexity: Perplexity | None
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Plain data, with the loss of every window and the score of every item."""
        perplexity = self.perplexity.to_record() if self.perplexity else None
        return {"perplexity": perplexity, "tasks": {name: found.to_record() for name, found in self.tasks.items()}}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Results":
        """The reverse of `to_record`."""
        perplexity = Perplexity.from_record(record["perplexity"]) if record["perplexity"] else None
        return cls(perplexity, {name: TaskResult.from_record(name, found) for name, found in record["tasks"].items()})

    def check_pairs(self, other: "Results", name: str) -> None:
        """Refuse to pair with results on other windows or items.

        Raises:
            CalibrationError: what was measured on other text, windows or items, or of `other` was not measured.
        """
        pairs: list[tuple[str, Any, Any]] = [(task, found, other.tasks.get(task)) for task, found in self.tasks.items()]
        if self.perplexity:
            pairs.append(("perplexity", self.perplexity, other.perplexity))
        for what, ours, theirs in pairs:
            if theirs is None or ours.sha256 != theirs.sha256:
                came = "was measured on others" if theirs else "was not measured"
                raise CalibrationError(
                    f"{name}: expected {what} on the same windows or items, but it {came}; evaluate both the same way"
                )


@dataclass(frozen=True)
class Assessment:
    """What was measured of `model` and, on the same windows and items, of `against`."""

    model: str
    against: str | None
    text: str | None
    device: str
    dtype: str
    results: Results
    reference: Results | None
    fidelity: Fidelity | None
    seconds: float

    def perplexity_ratio(self) -> Difference | None:
        """Perplexity of the model over that of the reference, exp of the paired difference of nats a token."""
        ours, theirs = self.results.perplexity, self.reference.perplexity if self.reference else None
        if ours is None or theirs is None:
            return None
        return difference(ours.losses, theirs.losses, ours.targets).exp()

    def task_differences(self) -> dict[str, dict[str, Difference]]:
        """How much higher the model scores than the reference, by task and metric, paired over items."""
        if self.reference is None:
            return {}
        return {
            name: {
                metric: difference(scores, self.reference.tasks[name].scores[metric], [1] * len(scores))
                for metric, scores in found.scores.items()
            }
            for name, found in self.results.tasks.items()
        }

    def to_record(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """One JSON document; docs/evaluating.md says what its keys mean."""
        ratio = self.perplexity_ratio()
        tasks = {
            name: {metric: found.to_dict() for metric, found in by_metric.items()}
            for name, by_metric in self.task_differences().items()
        }
        paired = {"perplexity_ratio": ratio.to_dict() if ratio else None, "tasks": tasks}
        harness = {"lm_eval": version("lm_eval")} if self.results.tasks else {}
        return {
            "kind": KIND,
            "format": FORMAT,
            "versions": {**versions, **harness},
            "model": self.model,
            "against": self.against,
            "text": self.text,
            "device": self.device,
            "dtype": self.dtype,
            "seconds": self.seconds,
            **self.results.to_record(),
            "reference": self.reference.to_record() if self.reference else None,
            "fidelity": self.fidelity.to_dict() if self.fidelity else None,
            "paired": paired if self.reference else None,
        }


def assess(
    subject: Subject,
    reference: Subject | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    text: Text | None = None,
    protocol: Protocol | None = None,
    seqlen: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    tasks: Mapping[str, Any] | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Assessment:
    """Measure `subject` on `text` (perplexity) and in `tasks` (of `harness.load_tasks`); a `reference` on the same.

    With a reference and a text both models run side by side, window by window, and the fidelity of the one to the
    other is measured on the way; both are in memory at once. A `record` of the reference takes the place of the
    reference, but for the fidelity.

    Raises:
        CalibrationError: a text too short, or a record of other windows or items.
        ModelError: the two models have different tokens or shapes.
        NumericsError: a loss is NaN or infinite.
    """
    start = time.perf_counter()
    loaded = [one for one in (subject, reference) if one]
    found: list[Perplexity | None] = [None] * len(loaded)
    fidelity = None
    if text is not None:
        windows = cut(
            subject.tokenizer,
            text.documents,
            protocol=protocol or text.protocol,
            context=_context(loaded),
            seqlen=seqlen,
            stride=stride,
            max_windows=max_windows or text.windows,
            joiner=text.joiner,
        )
        losses, fidelity = _measured(loaded, windows, progress)
        found = [perplexity_of(windows, each, time.perf_counter() - start) for each in losses]
    measured = [
        Results(each, zero_shot(one.model, one.tokenizer, tasks or {}, limit=limit, progress=progress))
        for one, each in zip(loaded, found, strict=True)
    ]
    other = Results.from_record(record) if record else measured[1] if reference else None
    name = str(record["model"]) if record else reference.name if reference else None
    if other and name:
        measured[0].check_pairs(other, name)
    source, seconds = text.source if text else None, time.perf_counter() - start
    place = str(subject.model.device), str(subject.model.dtype).removeprefix("torch.")
    return Assessment(subject.name, name, source, *place, measured[0], other, fidelity, seconds)


def _context(loaded: Sequence[Subject]) -> int | None:
    """What all models can read; None where none of them has a bound."""
    found = (getattr(one.model.config, "max_position_embeddings", None) for one in loaded)
    return min((int(length) for length in found if length), default=None)


def _measured(
    loaded: Sequence[Subject], windows: EvaluationWindows, progress: Progress | None
) -> tuple[list[Tensor], Fidelity | None]:
    """The losses of one model or two, and how the first follows the second."""
    if len(loaded) == 1:
        return [window_losses(loaded[0].model, windows, progress=progress)], None
    subject, reference = loaded
    if subject.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise ModelError(
            f"{subject.name} and {reference.name} have different tokens, so nothing of theirs can be paired; "
            "give the model that it was made from"
        )
    pair = Follower(subject.model, subject.order), Follower(reference.model, reference.order)
    found = follow(*pair, windows, progress=progress)
    return [found.losses, found.reference_losses], found.fidelity
