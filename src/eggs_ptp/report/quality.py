"""Quality: what the record of an evaluation contains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eggs_ptp.report.record_files import Kind, Record, number


@dataclass(frozen=True)
class Measurement:
    """A measured number.

    Attributes:
        value: The number.
        error: Its standard error; None if unknown.
        low: Lower end of its interval, where an interval was measured.
        high: Upper end of that interval.
    """

    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Perplexity:
    """A perplexity, and how it was measured: only perplexities with the same `protocol` are comparable."""

    measurement: Measurement
    protocol: str


@dataclass(frozen=True)
class Quality:
    """The measurements of one model; what was not measured is None or empty.

    Attributes:
        perplexity: Perplexity.
        tasks: Scores by task and metric.
        against: The reference model of `fidelity` and `differences`.
        fidelity: Fidelity to the reference, by quantity.
        hidden: Error of the hidden states after each block.
        differences: Paired differences to the reference.
        reference: The measurements of the reference.
    """

    perplexity: Perplexity | None
    tasks: Mapping[str, Measurement]
    against: str | None = None
    fidelity: Mapping[str, Measurement] | None = None
    hidden: Sequence[float] = ()
    differences: Mapping[str, Measurement] | None = None
    reference: "Quality | None" = None


_FIDELITY = {"KL divergence (nats)": "kl", "top-1 agreement": "agreement"}


def read_quality(record: Record) -> Quality | None:
    """Read an evaluation: written by `--record` or `--json`, or inside the record of a compared run.

    Unknown keys are ignored.

    Returns:
        The measurements; None for records of other kinds.
    """
    if record.kind not in (Kind.evaluation, Kind.compared_run):
        return None
    data = record.data
    fidelity = data.get("fidelity") or {}
    reference = data.get("reference")
    return Quality(
        perplexity=_perplexity(data),
        tasks=_tasks(data),
        against=data.get("against"),
        fidelity=_measured({name: fidelity.get(key) for name, key in _FIDELITY.items()}),
        hidden=[estimate["value"] for estimate in fidelity.get("hidden") or ()],
        differences=_differences(data.get("paired") or {}),
        reference=Quality(_perplexity({**reference, "text": data.get("text")}), _tasks(reference))
        if reference
        else None,
    )


def _perplexity(data: Mapping[str, Any]) -> Perplexity | None:
    """Read a perplexity, which is under `evaluation` or `perplexity`, or is the whole record."""
    nested = (data[key] for key in ("evaluation", "perplexity") if isinstance(data.get(key), dict))
    evaluation = next(nested, data)
    value = number(evaluation, "value")
    if value is None:
        return None
    relative_error = number(evaluation, "standard_error")  # of the mean loss in nats, so relative to the perplexity
    seqlen = evaluation["seqlen"]
    windows = "documents of up to" if evaluation["protocol"] == "documents" else "windows of"
    protocol = [f"text: {_text_name(data.get('text'))}", f"{evaluation['windows']} {windows} {seqlen} tokens"]
    if evaluation.get("stride") not in (None, seqlen):
        protocol.append(f"stride {evaluation['stride']}")
    if evaluation.get("begin_tokens"):
        protocol.append("each begins with the begin token")
    protocol.append(f"{evaluation['tokens']} tokens predicted")
    if evaluation.get("sha256"):
        protocol.append(f"windows SHA-256 {evaluation['sha256'][:8]}")
    error = None if relative_error is None else relative_error * value
    return Perplexity(Measurement(value, error), ", ".join(protocol))


def _text_name(text: str | None) -> str:
    """Return the name of a text; of a file without its folders, which are private."""
    if text is None:
        return "the default"
    return Path(text).name if Path(text).is_absolute() else text


def _tasks(data: Mapping[str, Any]) -> dict[str, Measurement]:
    return _measured(
        {
            f"{task}, {metric}": estimate
            for task, result in (data.get("tasks") or {}).items()
            for metric, estimate in result["metrics"].items()
        }
    )


def _differences(paired: Mapping[str, Any]) -> dict[str, Measurement]:
    differences = {"perplexity, ratio": paired.get("perplexity_ratio")}
    for task, metrics in (paired.get("tasks") or {}).items():
        differences |= {f"{task}, {metric}": difference for metric, difference in metrics.items()}
    return _measured(differences)


def _measured(estimates: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Measurement]:
    """Return the estimates that hold a number."""
    measurements = {}
    for name, estimate in estimates.items():
        value = number(estimate, "value") if estimate else None
        if estimate is not None and value is not None:
            measurements[name] = Measurement(
                value, number(estimate, "standard_error"), number(estimate, "low"), number(estimate, "high")
            )
    return measurements
