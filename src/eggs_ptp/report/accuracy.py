"""The sections on quality: perplexity, fidelity and tasks; comparisons of methods; generated text."""

from collections.abc import Mapping
from typing import NamedTuple

from eggs_ptp.evaluation.verdict import format_ratio, judge_ratio
from eggs_ptp.report import plots
from eggs_ptp.report.model_group import DENSE, ModelGroup
from eggs_ptp.report.number_format import NO_VALUE, format_bytes, format_number, format_with_error
from eggs_ptp.report.quality import Measurement
from eggs_ptp.report.record_files import Kind, Record, number
from eggs_ptp.report.section import Section, Table, Text


def quality_section(group: ModelGroup) -> Section:
    """Show all evaluations."""
    section = Section(f"{group.key}-quality", "Quality")
    _add_perplexities(section, group)
    _add_fidelity(section, group)
    _add_tasks(section, group)
    _add_differences(section, group)
    if section.is_empty:
        section.remarks.append(
            "There is no evaluation. Measure with: eggs evaluate DIR --json > DIR.evaluation.json, and the same for "
            f"{group.model}; then make the report again."
        )
    return section


class ComparisonRecord(NamedTuple):
    """The content of a record of `eggs compare`.

    Attributes:
        dots: Perplexities of the methods, by column.
        dense: Perplexity of the dense model.
        table: All numbers.
    """

    dots: dict[str, list[plots.Dot]]
    dense: float | None
    table: Table


def comparison_section(group: ModelGroup) -> Section:
    """Show the records of `eggs compare` on this model: a plot per column, and the table."""
    section = Section(f"{group.key}-comparison", "Methods compared")
    for record_index, record in enumerate(group.records):
        comparison = read_comparison(record)
        if comparison is None:
            continue
        for column_index, (column, dots) in enumerate(comparison.dots.items()):
            name = f"{group.key}-compared-{record_index}-{column_index}"
            title = f"Perplexity by method: {column}"
            axis = "perplexity, bars: sd over seeds"
            if _shows_something(dots):
                section.pictures.append(plots.dots(name, title, axis, dots, comparison.dense))
        section.tables.append(comparison.table)
        section.verdict = section.verdict or _comparison_verdict(record)
    return section


def _comparison_verdict(record: Record) -> str:
    """Return which method has the lowest perplexity, and what its ratio to dense means."""
    cells = [cell for cell in record.data["table"] if number(cell, "perplexity") is not None]
    dense = number(record.data["dense"] or {}, "perplexity")
    if not cells or not dense:
        return ""
    best = min(cells, key=lambda cell: float(cell["perplexity"]))
    method = " ".join(best["row"])
    verdict = judge_ratio(float(best["perplexity"]) / dense, method=method)
    return f"Lowest perplexity: {method} at {best['column']}, {verdict.headline}."


def read_comparison(record: Record) -> ComparisonRecord | None:
    """Read a record of `eggs compare`; None for others."""
    if record.kind is not Kind.comparison:
        return None
    data = record.data
    dense = number(data["dense"] or {}, "perplexity")
    dots: dict[str, list[plots.Dot]] = {}
    heads = [*data["heads"], "column", ">perplexity", ">seeds", ">difference to dense"]
    heads += [">× dense", ">× best (95 % interval)", ">processor time", ">memory", "remark"]
    rows = [["dense", *[""] * (len(data["heads"]) - 1), "", format_number(dense), *[""] * 7]]
    for cell in data["table"]:
        mean = number(cell, "perplexity")
        deviation = number(cell, "sd")
        if mean is not None:
            dot = plots.Dot(" ".join(cell["row"]), Measurement(mean, deviation), None)
            dots.setdefault(str(cell["column"]), []).append(dot)
        difference = format_number(number(cell, "difference"))
        numbers = [format_with_error(mean, deviation), str(cell["seeds"]), difference]
        ratio = format_ratio(mean / dense) if mean is not None and dense else ""
        seconds, memory = number(cell, "processor_seconds"), number(cell, "peak_memory_bytes")
        costs = ["" if seconds is None else f"{seconds:.1f} s", "" if memory is None else format_bytes(memory)]
        to_best = _paired_text(cell.get("ratio_to_best"))
        rows.append([*cell["row"], str(cell["column"]), *numbers, ratio, to_best, *costs, str(cell["remark"])])
    used = [index for index in range(len(heads)) if any(row[index] for row in rows)]
    title = data.get("title") or "eggs compare"
    table = Table(
        f"{title} ({record.path.name}); ± is the standard deviation over seeds",
        [heads[index] for index in used],
        [[row[index] for index in used] for row in rows],
    )
    return ComparisonRecord(dots, dense, table)


def _paired_text(ratio: Mapping[str, float | None] | None) -> str:
    """Return a paired ratio with its interval as text; empty where there is none."""
    if not ratio or ratio.get("value") is None:
        return ""
    value, low, high = (ratio.get(key) for key in ("value", "low", "high"))
    interval = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    return f"{value:.2f}{interval}"


def text_section(group: ModelGroup) -> Section:
    """Show one prompt, continued by the dense model and by the pruned ones."""
    section = Section(f"{group.key}-text", "Generated text")
    owners = [(DENSE, group.records), *((run.label, run.all_records) for run in group.runs)]
    for label, records in owners:
        for record in records:
            section.texts += read_texts(record, label)
    section.texts += group.texts
    section.texts = list(dict.fromkeys(section.texts))
    section.texts.sort(key=lambda text: (text.prompt, text.label != DENSE))  # stable: runs stay in their order
    if section.texts:
        section.remarks.append("One sample per model: it shows the kind of text, not how good the model is.")
    return section


def read_texts(record: Record, label: str = DENSE) -> list[Text]:
    """Return the texts in a record of `eggs generate` or `eggs demo`; none for others.

    Args:
        record: The record.
        label: The model, for records of `eggs generate`; `eggs demo` names its models.
    """
    data = record.data
    if record.kind is Kind.sample:
        texts = [_continuation(label, data["prompt"], data["text"])]
        if against := data.get("against"):
            texts.append(_continuation(DENSE, data["prompt"], against["text"]))
        return texts
    if record.kind is Kind.demo:
        return [_continuation(str(name), data["prompt"], text) for name, text in data["samples"].items()]
    return []


def _add_perplexities(section: Section, group: ModelGroup) -> None:
    by_protocol = group.perplexities()
    for index, (protocol, by_label) in enumerate(by_protocol.items()):
        dense = by_label.get(DENSE)
        dense_value = dense[1].measurement.value if dense else None
        dots = []
        rows = []
        for label, (run_index, perplexity) in by_label.items():
            measurement = perplexity.measurement
            dots.append(plots.Dot(_label_with_method(group, label, run_index), measurement, run_index))
            ratio = f"{measurement.value / dense_value:.3f}" if dense_value else NO_VALUE
            rows.append([label, format_with_error(measurement.value, measurement.error), ratio])
        name = f"{group.key}-perplexity-{index}"
        if _shows_something(dots):
            title = "Perplexity, lower is better"
            section.pictures.append(plots.dots(name, title, "perplexity", dots, dense_value))
        measured = f"{protocol}. " if len(by_protocol) > 1 else ""  # the card has the only one
        caption = f"Perplexity; {measured}± is one standard error over windows"
        section.tables.append(Table(caption, ["model", ">perplexity", ">× dense"], rows))
    if len(by_protocol) > 1:
        section.remarks.append(
            "Perplexities with different texts or windows do not compare: each protocol has its own plot."
        )


def _add_fidelity(section: Section, group: ModelGroup) -> None:
    evaluations = [
        evaluation
        for evaluation in group.evaluations()
        if evaluation.run_index is not None and evaluation.quality.fidelity
    ]
    quantities = list(dict.fromkeys(name for each in evaluations for name in each.quality.fidelity or ()))
    for index, quantity in enumerate(quantities):
        dots = [
            plots.Dot(evaluation.label, measurement, evaluation.run_index)
            for evaluation in evaluations
            if (measurement := (evaluation.quality.fidelity or {}).get(quantity)) is not None
        ]
        name = f"{group.key}-fidelity-{index}"
        if _shows_something(dots):
            section.pictures.append(plots.dots(name, f"{quantity}, against dense", quantity, dots))
    _add_hidden_errors(section, group)
    if quantities:
        rows = []
        for evaluation in evaluations:
            fidelity = evaluation.quality.fidelity or {}
            rows.append([evaluation.label, *(_measurement_text(fidelity.get(quantity)) for quantity in quantities)])
        caption = (
            "Fidelity: how closely the pruned model follows the dense one, without labels; ± is one standard error"
        )
        section.tables.append(Table(caption, ["model", *(f">{quantity}" for quantity in quantities)], rows))


def _add_hidden_errors(section: Section, group: ModelGroup) -> None:
    """Add the error of the hidden states after each block."""
    errors: dict[str, Mapping[int, float]] = {}
    run_indices: dict[str, int] = {}
    for label, run_index, quality in group.evaluations():
        if run_index is not None and quality.fidelity and quality.hidden:
            errors[label] = dict(enumerate(quality.hidden))
            run_indices[label] = run_index
    if not errors:
        return
    title = "Hidden-state error by block"
    name = f"{group.key}-hidden"
    section.pictures.append(plots.lines(name, title, "relative error", errors, list(run_indices.values())))
    blocks = sorted({block for by_block in errors.values() for block in by_block})
    rows = [[str(block), *(format_number(by_block.get(block)) for by_block in errors.values())] for block in blocks]
    section.collapsed.append(Table("Every block in numbers", ["block", *(f">{label}" for label in errors)], rows))


def _add_tasks(section: Section, group: ModelGroup) -> None:
    by_task: dict[str, dict[str, tuple[int | None, Measurement]]] = {}  # of several records the first counts
    for label, run_index, quality in group.evaluations():
        for task, score in quality.tasks.items():
            by_task.setdefault(task, {}).setdefault(label, (run_index, score))
    for index, (task, by_label) in enumerate(by_task.items()):
        dots = [plots.Dot(label, score, run_index) for label, (run_index, score) in by_label.items()]
        dense_score = by_label[DENSE][1].value if DENSE in by_label else None
        name = f"{group.key}-task-{index}"
        if _shows_something(dots):
            section.pictures.append(plots.dots(name, f"Task {task}", "share of correct answers", dots, dense_score))
    if not by_task:
        return
    rows = []
    for label in dict.fromkeys(label for by_label in by_task.values() for label in by_label):
        scores = [by_label[label][1] if label in by_label else None for by_label in by_task.values()]
        rows.append([label, *map(_measurement_text, scores)])
    heads = ["model", *(f">{task}" for task in by_task)]
    section.tables.append(Table("Zero-shot tasks: share of correct answers, ± one standard error", heads, rows))


def _add_differences(section: Section, group: ModelGroup) -> None:
    rows = []
    for label, _, quality in group.evaluations():
        against = DENSE if group.is_made_from(quality.against or "") else str(quality.against)
        for quantity, difference in (quality.differences or {}).items():
            interval = NO_VALUE
            if difference.low is not None and difference.high is not None:
                interval = f"{format_number(difference.low)} to {format_number(difference.high)}"
            rows.append([label, against, quantity, _measurement_text(difference), interval])
    if rows:
        heads = ["model", "against", "quantity", ">value", ">95 % interval"]
        caption = (
            "Paired: both models on the same windows and items. For perplexity the ratio, for tasks the difference."
        )
        section.tables.append(Table(caption, heads, rows))


def _shows_something(dots: list[plots.Dot]) -> bool:
    """Return whether a plot says more than its table: two runs or more, or two methods, beside the dense model."""
    return len({dot.label for dot in dots} - {DENSE}) > 1


def _continuation(label: str, prompt: str, text: str) -> Text:
    return Text(label, prompt, text.removeprefix(prompt))


def _label_with_method(group: ModelGroup, label: str, run_index: int | None) -> str:
    """Return the label of a run with its method, unless the label contains the method."""
    method = label if run_index is None else group.runs[run_index].method
    return label if method in label else f"{label} ({method})"


def _measurement_text(measurement: Measurement | None) -> str:
    return format_with_error(measurement.value, measurement.error) if measurement else NO_VALUE
