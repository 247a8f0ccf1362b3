"""Assessment: everything that an evaluation measures of a model, and of the model that it is compared with."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from torch import Tensor

from eggs_ptp.errors import CalibrationError, ModelError
from eggs_ptp.evaluation.begin_rule import BeginRule, RecordedRule, apply_begin_rule
from eggs_ptp.evaluation.estimate import Difference, difference
from eggs_ptp.evaluation.evaluation_record import FORMAT, KIND
from eggs_ptp.evaluation.fidelity import ComparedModel, Fidelity, measure_fidelity
from eggs_ptp.evaluation.memory import expected_memory
from eggs_ptp.evaluation.model_under_test import ModelUnderTest
from eggs_ptp.evaluation.perplexity import Perplexity, Progress, perplexity_of, window_losses
from eggs_ptp.evaluation.text import EvaluationText
from eggs_ptp.evaluation.window import EvaluationWindows, Protocol, make_windows
from eggs_ptp.evaluation.zeroshot import TaskResult, zero_shot


@dataclass(frozen=True)
class Results:
    """The results of one model.

    Attributes:
        perplexity: Its perplexity; None if no text was evaluated.
        tasks: Its results in zero-shot tasks.
    """

    perplexity: Perplexity | None
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Return plain data, with the loss of every window and the score of every item."""
        perplexity = self.perplexity.to_record() if self.perplexity else None
        return {"perplexity": perplexity, "tasks": {name: task.to_record() for name, task in self.tasks.items()}}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Results":
        """Rebuild results from their `to_record`."""
        perplexity = Perplexity.from_record(record["perplexity"]) if record["perplexity"] else None
        tasks = {name: TaskResult.from_record(name, task) for name, task in record["tasks"].items()}
        return cls(perplexity, tasks)

    def check_comparable(self, reference: "Results", reference_name: str) -> None:
        """Refuse to compare with results on other windows or items.

        Args:
            reference: The results to compare with.
            reference_name: The model that they belong to, for messages.

        Raises:
            CalibrationError: The reference was measured on another text, windows or items, or a measure is missing.
        """
        pairs: list[tuple[str, Any, Any]] = [
            (name, task, reference.tasks.get(name)) for name, task in self.tasks.items()
        ]
        if self.perplexity:
            pairs.append(("perplexity", self.perplexity, reference.perplexity))
        for measure, result, reference_result in pairs:
            if reference_result is None or result.sha256 != reference_result.sha256:
                fault = "was measured on others" if reference_result else "was not measured"
                raise CalibrationError(
                    f"{reference_name}: expected {measure} on the same windows or items, but it {fault}; evaluate both "
                    "models with the same options"
                )


@dataclass(frozen=True)
class Assessment:
    """Everything measured of a model and, on the same windows and items, of a reference.

    Attributes:
        model: The model.
        against: The reference; None if there is none.
        text: Describes the text; None if perplexity was not measured.
        device: Device that computed.
        dtype: Type of the model's weights.
        results: Results of the model.
        reference: Results of the reference.
        fidelity: How closely the model follows the reference; None if the reference is only a record.
        seconds: Time that the evaluation took.
    """

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
        """Return the model's perplexity over the reference's, exp of the paired difference of nats a token."""
        perplexity = self.results.perplexity
        reference = self.reference.perplexity if self.reference else None
        if perplexity is None or reference is None:
            return None
        return difference(perplexity.losses, reference.losses, perplexity.targets).exp()

    def task_differences(self) -> dict[str, dict[str, Difference]]:
        """Return how much higher the model scores than the reference, by task and metric, paired over items."""
        if self.reference is None:
            return {}
        return {
            name: {
                metric: difference(scores, self.reference.tasks[name].scores[metric], [1] * len(scores))
                for metric, scores in task.scores.items()
            }
            for name, task in self.results.tasks.items()
        }

    def to_record(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """Return one JSON document; docs/evaluating.md describes its keys.

        Args:
            versions: Versions of the packages that computed.
        """
        ratio = self.perplexity_ratio()
        tasks = {
            name: {metric: task_difference.to_dict() for metric, task_difference in by_metric.items()}
            for name, by_metric in self.task_differences().items()
        }
        paired = {"perplexity_ratio": ratio.to_dict() if ratio else None, "tasks": tasks}
        harness_version = {"lm_eval": version("lm_eval")} if self.results.tasks else {}
        return {
            "kind": KIND,
            "format": FORMAT,
            "versions": {**versions, **harness_version},
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
    model_under_test: ModelUnderTest,
    reference: ModelUnderTest | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    text: EvaluationText | None = None,
    protocol: Protocol | None = None,
    seqlen: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    begin: BeginRule = "auto",
    tasks: Mapping[str, Any] | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    on_memory: Callable[[int], None] | None = None,
) -> Assessment:
    """Measure perplexity and zero-shot accuracy of a model, and compare them with those of a reference.

    With a reference and a text, both models are in memory and run window by window, which also measures the fidelity
    of the model to the reference.

    Args:
        model_under_test: The model.
        reference: The model to compare it with.
        record: Evaluation record of the reference, in place of the model; gives no fidelity.
        text: Text for the perplexity; None measures none.
        protocol: How to cut the text; default the text's own.
        seqlen: Tokens in a window; default min(2048, the context of both models).
        stride: Tokens between the beginnings of packed windows; default `seqlen`.
        max_windows: Take only this many windows or documents, from the start; default the text's own.
        begin: Whether packed windows begin with the begin token, see `begin_rule`; "auto" decides by the reference, if
            there is one.
        tasks: lm-eval's task objects by name, from `harness.load_tasks`.
        limit: Take only this many items of each task, from the start.
        progress: Called as windows and items are measured.
        on_memory: Called before the first window with the bytes that the process is expected to take at its peak, see
            `memory.expected_memory`.

    Raises:
        CalibrationError: The text is too short, or the record is of other windows or items.
        ModelError: The two models differ in their tokens or shapes.
        NumericsError: A loss is NaN or infinite.
    """
    start = time.perf_counter()
    models = [model_under_test] if reference is None else [model_under_test, reference]
    perplexities: list[Perplexity | None] = [None] * len(models)
    fidelity = None
    if text is not None:
        _check_vocabularies(models)
        windows = make_windows(
            model_under_test.tokenizer,
            text.documents,
            protocol=protocol or text.protocol,
            context=_shared_context(models),
            seqlen=seqlen,
            stride=stride,
            max_windows=max_windows or text.windows,
            joiner=text.joiner,
        )
        if on_memory:
            on_memory(expected_memory([each.model for each in models], windows))
        windows = _with_begin_rule(windows, models, record, begin)
        losses, fidelity = _measure_losses(models, windows, progress)
        perplexities = [perplexity_of(windows, each, time.perf_counter() - start) for each in losses]
    results = [
        Results(perplexity, zero_shot(each.model, each.tokenizer, tasks or {}, limit=limit, progress=progress))
        for each, perplexity in zip(models, perplexities, strict=True)
    ]
    reference_results = None
    reference_name = None
    if record:
        reference_results = Results.from_record(record)
        reference_name = str(record["model"])
    elif reference:
        reference_results = results[1]
        reference_name = reference.name
    if reference_results and reference_name:
        results[0].check_comparable(reference_results, reference_name)
    return Assessment(
        model=model_under_test.name,
        against=reference_name,
        text=text.source if text else None,
        device=str(model_under_test.model.device),
        dtype=str(model_under_test.model.dtype).removeprefix("torch."),
        results=results[0],
        reference=reference_results,
        fidelity=fidelity,
        seconds=time.perf_counter() - start,
    )


def _shared_context(models: Sequence[ModelUnderTest]) -> int | None:
    """Return the most tokens that all models can read; None if none of them has a limit."""
    limits = (getattr(each.model.config, "max_position_embeddings", None) for each in models)
    return min((int(limit) for limit in limits if limit), default=None)


def _check_vocabularies(models: Sequence[ModelUnderTest]) -> None:
    """Refuse two models with different tokens."""
    if any(each.tokenizer.get_vocab() != models[0].tokenizer.get_vocab() for each in models[1:]):
        raise ModelError(
            f"{models[0].name} and {models[1].name} have different vocabularies, so their losses cannot be "
            "paired; compare with the model that it was made from"
        )


def _with_begin_rule(
    windows: EvaluationWindows, models: Sequence[ModelUnderTest], record: Mapping[str, Any] | None, rule: BeginRule
) -> EvaluationWindows:
    """Return the windows that begin as the rule says; the last model, the dense one of two, decides.

    Raises:
        CalibrationError: The record is of other windows, which is known before any is measured.
    """
    recorded = Perplexity.from_record(record["perplexity"]) if record and record["perplexity"] else None
    name = str(record["model"]) if record else ""
    packed = recorded is not None and recorded.protocol == windows.protocol == "packed"
    windows = apply_begin_rule(
        windows,
        models[0].tokenizer,
        models[-1].model,
        rule=rule,
        recorded=RecordedRule(recorded.begin_tokens, name) if recorded and packed else None,
        measure=functools.partial(window_losses, models[-1].model),
    )
    if recorded and packed and bool(recorded.begin_tokens) != bool(windows.begin):
        ours, theirs = (
            "begin with the begin token" if begin else "begin in mid-text"
            for begin in (windows.begin, recorded.begin_tokens)
        )
        raise CalibrationError(
            f"{name}: expected perplexity on windows that {ours} ({windows.begin_reason}), but its windows {theirs}; "
            f"evaluate it again, or this model with --begin {'always' if recorded.begin_tokens else 'never'}"
        )
    if recorded and recorded.sha256 != windows.digest:
        raise CalibrationError(
            f"{name}: expected perplexity on the same windows or items, but it was measured on others; evaluate both "
            "models with the same options"
        )
    return windows


def _measure_losses(
    models: Sequence[ModelUnderTest], windows: EvaluationWindows, progress: Progress | None
) -> tuple[list[Tensor], Fidelity | None]:
    """Return the losses of one model or two, and the fidelity of the first to the second."""
    if len(models) == 1:
        return [window_losses(models[0].model, windows, progress=progress)], None
    model_under_test, reference = models
    result = measure_fidelity(
        ComparedModel(model_under_test.model, model_under_test.permutation),
        ComparedModel(reference.model, reference.permutation),
        windows,
        progress=progress,
    )
    return [result.losses, result.reference_losses], result.fidelity
