"""Quality: what an evaluation record says of its model, and of the one it was measured against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eggs_ptp.report.record import Kind, Record, number


@dataclass(frozen=True)
class Figure:
    """A number with its standard error (None: not known), and its interval where that was measured instead."""

    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Perplexity:
    """A perplexity, and how it was measured: only those of one `protocol` can be compared."""

    figure: Figure
    protocol: str


@dataclass(frozen=True)
class Quality:
    """What is known of one model. `against` is the reference that fidelity and differences are to."""

    perplexity: Perplexity | None
    tasks: Mapping[str, Figure]  # by task and metric
    against: str | None = None
    fidelity: Mapping[str, Figure] | None = None
    hidden: Sequence[float] = ()  # hidden-state error after each block
    differences: Mapping[str, Figure] | None = None
    reference: "Quality | None" = None


_FIDELITY = {"KL divergence (nats)": "kl", "top-1 agreement": "agreement"}


def quality(record: Record) -> Quality | None:
    """Read an evaluation: of `--record`, of `--json`, or that in the record of a compared run; None of other records.

    What was not measured is None or empty, and keys that are not known are left alone.
    """
    if record.kind not in (Kind.evaluation, Kind.compared_run):
        return None
    data = record.data
    fidelity, reference = data.get("fidelity") or {}, data.get("reference")
    return Quality(
        _perplexity(data),
        _tasks(data),
        data.get("against"),
        {name: figure for name, key in _FIDELITY.items() if (figure := _figure(fidelity.get(key))) is not None},
        [each["value"] for each in fidelity.get("hidden") or ()],
        _differences(data.get("paired") or {}),
        Quality(_perplexity({**reference, "text": data.get("text")}), _tasks(reference)) if reference else None,
    )


def _perplexity(data: Mapping[str, Any]) -> Perplexity | None:
    """Nested under `perplexity` or `evaluation`, or all of the record."""
    found = next((data[key] for key in ("evaluation", "perplexity") if isinstance(data.get(key), dict)), data)
    value = number(found, "value")
    if value is None:
        return None
    relative = number(found, "standard_error")  # of the mean loss in nats, so relative to the perplexity
    text, length = data.get("text"), found["seqlen"]
    kind = "documents of up to" if found["protocol"] == "documents" else "windows of"
    parts = [f"text: {_short(text)}", f"{found['windows']} {kind} {length} tokens"]
    if found.get("stride") not in (None, length):
        parts.append(f"stride {found['stride']}")
    parts.append(f"{found['tokens']} tokens predicted")
    if found.get("sha256"):
        parts.append(f"windows SHA-256 {found['sha256'][:8]}")
    return Perplexity(Figure(value, None if relative is None else relative * value), ", ".join(parts))


def _short(text: str | None) -> str:
    """The name of a text: of a file without its folders, which are nobody's business."""
    return "the default" if text is None else Path(text).name if Path(text).is_absolute() else text


def _tasks(data: Mapping[str, Any]) -> dict[str, Figure]:
    return {
        f"{task}, {metric}": figure
        for task, found in (data.get("tasks") or {}).items()
        for metric, each in found["metrics"].items()
        if (figure := _figure(each)) is not None
    }


def _differences(paired: Mapping[str, Any]) -> dict[str, Figure]:
    found = {"perplexity, ratio": _figure(paired.get("perplexity_ratio"))}
    for task, metrics in (paired.get("tasks") or {}).items():
        found |= {f"{task}, {metric}": _figure(each) for metric, each in metrics.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def _figure(found: Mapping[str, Any] | None) -> Figure | None:
    value = number(found, "value") if found else None
    if found is None or value is None:
        return None
    return Figure(value, number(found, "standard_error"), number(found, "low"), number(found, "high"))
