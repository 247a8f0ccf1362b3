"""The first section: quality, size and speed as key numbers."""

from collections.abc import Sequence

from eggs_ptp.evaluation.verdict import judge_ratio
from eggs_ptp.report.model_group import DENSE, ModelGroup
from eggs_ptp.report.number_format import NO_VALUE, format_bytes, format_duration, format_number, format_with_error
from eggs_ptp.report.quality import Perplexity
from eggs_ptp.report.record_files import Kind
from eggs_ptp.report.run_folder import Run, packed_sibling_bytes
from eggs_ptp.report.section import Card, Section, Table
from eggs_ptp.report.speed import Speedup, read_speedup

_HEADS = ("run", "method", "pattern", ">perplexity", ">× dense", ">kept", ">stored", ">speedup")


def headline_section(group: ModelGroup) -> Section:
    """Show a verdict and a card for what was measured, of the best run, and for several runs a row for each."""
    section = Section(f"{group.key}-headline", "At a glance")
    protocol, perplexities = _comparable_perplexities(group)
    runs = {run.label: run for run in group.runs}
    evaluated = [label for label in runs if label in perplexities]
    best = group.runs[0].label
    if evaluated:
        best = min(evaluated, key=lambda label: perplexities[label].measurement.value)
    section.verdict = _verdict(runs[best], group, perplexities)
    cards = [_size_card(group.runs)]
    if best in perplexities:
        cards.insert(0, _quality_card(runs[best], perplexities, protocol, len(runs)))
    speed = _speed_card(group.runs)
    section.cards = [*cards, speed] if speed else cards
    if len(runs) > 1:
        measured = f"Perplexity: {protocol}. " if protocol else ""
        section.tables.append(
            Table(
                f"{measured}Kept: share of the weights of pruned matrices. Speedup: text generation, packed over the "
                "fastest dense form; ?: not reliable, the samples vary too much.",
                [*_HEADS, ">time to prune"],
                [_row(run, perplexities) for run in group.runs],
            )
        )
    return section


def _verdict(best: Run, group: ModelGroup, perplexities: dict[str, Perplexity]) -> str:
    """Return what the perplexity of the best run means, or how to find out."""
    name = f"{best.label} ({best.method}, {best.pattern})" if best.method not in best.label else best.label
    perplexity, dense = perplexities.get(best.label), perplexities.get(DENSE)
    if perplexity is None:
        return "Not evaluated: how good the model is, is not known. eggs evaluate DIR --against MODEL measures it."
    if dense is None:
        return (
            f"{name} has a perplexity of {format_number(perplexity.measurement.value)}; without the dense model's, it "
            "says little. eggs evaluate DIR --against MODEL compares them."
        )
    calibration = best.manifest.get("calibration")
    tokens = int(calibration.get("nsamples", 0)) * int(calibration.get("seqlen", 0)) if calibration else 0
    ratio = perplexity.measurement.value / dense.measurement.value
    verdict = judge_ratio(ratio, _ratio_interval(best, group, ratio), method=best.method, calibration_tokens=tokens)
    prefix = f"Best of {len(group.runs)}, {name}" if len(group.runs) > 1 else name
    return f"{prefix}: {verdict.text}."


def _ratio_interval(run: Run, group: ModelGroup, ratio: float) -> tuple[float, float] | None:
    """Return the recorded 95 % interval of this ratio; None if it was not measured in pairs."""
    for label, _, quality in group.evaluations():
        measured = (quality.differences or {}).get("perplexity, ratio")
        if label != run.label or measured is None or measured.low is None or measured.high is None:
            continue
        if abs(measured.value - ratio) < 1e-6 * ratio:
            return measured.low, measured.high
    return None


def _comparable_perplexities(group: ModelGroup) -> tuple[str, dict[str, Perplexity]]:
    """Return the protocol that most runs were evaluated with, and its perplexities by label."""
    by_protocol = group.perplexities()
    if not by_protocol:
        return "", {}
    protocol = max(by_protocol, key=lambda protocol: len(by_protocol[protocol].keys() - {DENSE}))
    return protocol, {label: perplexity for label, (_, perplexity) in by_protocol[protocol].items()}


def _row(run: Run, perplexities: dict[str, Perplexity]) -> list[str]:
    perplexity = perplexities.get(run.label)
    speedup = _speedup(run)
    return [
        run.label,
        run.method,
        run.pattern,
        _perplexity_text(perplexity) if perplexity else NO_VALUE,
        _ratio_text(perplexity, perplexities.get(DENSE)),
        f"{run.kept:.1%}",
        format_bytes(run.stored),
        speedup.text if speedup else NO_VALUE,
        format_duration(float(run.manifest.get("seconds", 0.0))),
    ]


def _perplexity_text(perplexity: Perplexity) -> str:
    return format_with_error(perplexity.measurement.value, perplexity.measurement.error)


def _ratio_text(perplexity: Perplexity | None, dense: Perplexity | None) -> str:
    if perplexity is None or dense is None:
        return NO_VALUE
    return f"{perplexity.measurement.value / dense.measurement.value:.3f}"


def _quality_card(run: Run, perplexities: dict[str, Perplexity], protocol: str, run_count: int) -> Card:
    perplexity = perplexities[run.label]
    dense = perplexities.get(DENSE)
    notes = [protocol]
    if dense:
        notes.insert(0, f"{_ratio_text(perplexity, dense)} times the dense model's {_perplexity_text(dense)}")
    if run_count == 1:
        return Card("Perplexity", _perplexity_text(perplexity), notes)
    notes = [f"{run.label}: {run.method}", *notes]
    evaluated = len(perplexities.keys() - {DENSE})
    if evaluated < run_count:
        notes.append(f"among {evaluated} of {run_count} runs, those with this protocol")
    return Card("Lowest perplexity", _perplexity_text(perplexity), notes)


def _size_card(runs: Sequence[Run]) -> Card:
    kept = _range_text([f"{share:.1%}" for share in sorted({run.kept for run in runs})])
    largest = max(runs, key=lambda run: run.weights)
    weights = f"{largest.weights:,}".replace(",", "\u202f")
    notes = [f"of {weights} weights in {len(largest.matrices)} pruned matrices"]
    sizes = sorted({run.stored for run in runs if run.stored is not None})
    if sizes:
        forms = " and ".join(sorted({"packed" if run.packed else "dense with zeros" for run in runs}))
        notes.append(f"{_range_text([format_bytes(size) for size in sizes])} stored, {forms}")
    else:
        notes.append("no weight files")
    for run in runs:
        for record in run.records_of(Kind.bench):
            linears = (record.data.get("generate") or {}).get("linears_bytes")
            if linears:
                packed = format_bytes(linears["packed"])
                notes.append(f"linears in memory: {packed} packed, {format_bytes(linears['dense'])} dense")
    packed_sizes = sorted({size for run in runs if (size := packed_sibling_bytes(run)) is not None})
    if packed_sizes:
        notes.append(f"{_range_text([format_bytes(size) for size in packed_sizes])} packed, in the folder beside it")
    patterns = " and ".join(sorted({run.pattern for run in runs}))
    return Card(f"Kept, {patterns}", kept, list(dict.fromkeys(notes)))


def _speed_card(runs: Sequence[Run]) -> Card | None:
    """Return the card of the highest speedup; None if none was measured."""
    seconds = sorted(float(run.manifest.get("seconds", 0.0)) for run in runs)
    pruned_in = f"pruned in {_range_text([format_duration(value) for value in seconds])}"
    speedups = {run.label: speedup for run in runs if (speedup := _speedup(run)) is not None}
    if not speedups:
        return None
    fastest = max(speedups, key=lambda label: speedups[label].value)
    notes = [fastest] if len(runs) > 1 else []
    notes.append(f"over {speedups[fastest].over}, the fastest dense form")
    if not speedups[fastest].trusted:
        notes.append("?: not reliable, the samples vary too much")
    notes.append(pruned_in)
    return Card("Speedup of text generation, packed", speedups[fastest].text, notes)


def _speedup(run: Run) -> Speedup | None:
    speedups = (read_speedup(record) for record in run.records_of(Kind.bench))
    return next((speedup for speedup in speedups if speedup is not None), None)


def _range_text(texts: Sequence[str]) -> str:
    """Join the texts of ascending numbers: the first and the last, or one if they are equal."""
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"
