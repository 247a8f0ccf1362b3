"""The section about quality: perplexity, fidelity, tasks; comparisons; and what the models write."""

from typing import NamedTuple

from eggs_ptp.report import plots
from eggs_ptp.report.group import DENSE, Group, names
from eggs_ptp.report.quality import Figure
from eggs_ptp.report.record import Kind, Record, number
from eggs_ptp.report.section import Section, Table, Text
from eggs_ptp.report.words import plain, with_error


def accuracy(group: Group) -> Section:
    """Everything that evaluations say."""
    section = Section(f"{group.key}-quality", "Quality")
    _perplexity(group, section)
    _fidelity(group, section)
    _tasks(group, section)
    _differences(group, section)
    if section.is_empty:
        section.remarks.append(
            "No evaluation was found. Measure with: eggs evaluate DIR --json > DIR.evaluation.json, and the same for "
            f"{group.model}; then make the report again."
        )
    return section


class Compared(NamedTuple):
    """What a record of `eggs compare` says: numbers by column, the dense model's, and the whole table."""

    columns: dict[str, list[plots.Dot]]
    dense: float | None
    table: Table


def comparisons(group: Group) -> Section:
    """Records of `eggs compare` on this model: a picture a column, and the whole table."""
    section = Section(f"{group.key}-comparison", "Methods compared")
    for index, record in enumerate(group.records):
        found = compared(record)
        if found is None:
            continue
        for place, (column, rows) in enumerate(found.columns.items()):
            name, title = f"{group.key}-compared-{index}-{place}", f"Perplexity by method: {column}"
            axis = "perplexity, bars: sd over seeds"
            section.pictures.append(plots.dots(name, title, axis, rows, found.dense))
        section.tables.append(found.table)
    return section


def compared(record: Record) -> Compared | None:
    """Read a record of `eggs compare`; None of others."""
    if record.kind is not Kind.comparison:
        return None
    data = record.data
    dense = number(data["dense"] or {}, "perplexity")
    columns: dict[str, list[plots.Dot]] = {}
    heads = [*data["heads"], "column", ">perplexity", ">seeds", ">difference to dense", "remark"]
    rows = [["dense", *[""] * (len(data["heads"]) - 1), "", plain(dense), "", "", ""]]
    for cell in data["table"]:
        value, sd = number(cell, "perplexity"), number(cell, "sd")
        if value is not None:
            dot = plots.Dot(" ".join(cell["row"]), Figure(value, sd), None)
            columns.setdefault(str(cell["column"]), []).append(dot)
        numbers = [with_error(value, sd), str(cell["seeds"]), plain(number(cell, "difference"))]
        rows.append([*cell["row"], str(cell["column"]), *numbers, str(cell["remark"])])
    used = [index for index in range(len(heads)) if any(row[index] for row in rows)]
    heads, rows = [heads[index] for index in used], [[row[index] for index in used] for row in rows]
    title = data.get("title") or "eggs compare"
    caption = f"{title} ({record.path.name}); ± is the standard deviation over seeds"
    return Compared(columns, dense, Table(caption, heads, rows))


def texts(group: Group) -> Section:
    """The same prompt continued by the dense model and by the pruned ones."""
    section = Section(f"{group.key}-text", "What they write")
    owners = [(DENSE, group.records), *((run.label, run.all_records) for run in group.runs)]
    for label, records in owners:
        for record in records:
            section.texts += text_samples(record, label)
    section.texts = list(dict.fromkeys(section.texts))
    section.texts.sort(key=lambda sample: sample.prompt)  # stable: dense stays first
    if section.texts:
        section.remarks.append("One sample each: it shows what kind of text comes, not how good a model is.")
    return section


def text_samples(record: Record, label: str = DENSE) -> list[Text]:
    """The texts in a record of `eggs generate` or `eggs demo`, which names the models itself; none of others."""
    data = record.data
    if record.kind is Kind.sample:
        return [_text(label, data["prompt"], data["text"])]
    if record.kind is Kind.demo:
        return [_text(str(name), data["prompt"], text) for name, text in data["samples"].items()]
    return []


def _perplexity(group: Group, section: Section) -> None:
    found = group.perplexities()
    for index, (protocol, by_label) in enumerate(found.items()):
        rows = [plots.Dot(_named(group, label, place), each.figure, place) for label, (place, each) in by_label.items()]
        dense = by_label.get(DENSE)
        reference = dense[1].figure.value if dense else None
        name = f"{group.key}-perplexity-{index}"
        section.pictures.append(
            plots.dots(name, "Perplexity, lower is better", "perplexity", rows, reference, protocol)
        )
        cells = [
            [
                label,
                with_error(figure.figure.value, figure.figure.error),
                f"{figure.figure.value / reference:.3f}" if reference else "–",
            ]
            for label, (_, figure) in by_label.items()
        ]
        caption = f"Perplexity: {protocol}. ± is one standard error over windows."
        section.tables.append(Table(caption, ["model", ">perplexity", ">× dense"], cells))
    if len(found) > 1:
        section.remarks.append(
            "Perplexities were measured in different ways, which do not compare: each way has its own picture."
        )


def _fidelity(group: Group, section: Section) -> None:
    measured = [(label, place, quality) for label, place, quality in group.measured() if place is not None]
    measured = [each for each in measured if each[2].fidelity]
    kinds = list(dict.fromkeys(name for _, _, quality in measured for name in quality.fidelity or ()))
    for index, name in enumerate(kinds):
        known = [(label, place, (each.fidelity or {}).get(name)) for label, place, each in measured]
        rows = [plots.Dot(label, figure, place) for label, place, figure in known if figure is not None]
        section.pictures.append(plots.dots(f"{group.key}-fidelity-{index}", f"{name}, against dense", name, rows))
    hidden = {label: (place or 0, dict(enumerate(each.hidden))) for label, place, each in measured if each.hidden}
    if hidden:
        places, values = [place for place, _ in hidden.values()], {label: found for label, (_, found) in hidden.items()}
        title = "Hidden-state error by block"
        section.pictures.append(plots.lines(f"{group.key}-hidden", title, "relative error", values, places))
        blocks = sorted({block for found in values.values() for block in found})
        cells = [[str(block), *(plain(found.get(block)) for found in values.values())] for block in blocks]
        section.folded.append(Table(title, ["block", *(f">{label}" for label in values)], cells))
    if kinds:
        heads = ["model", *(f">{name}" for name in kinds)]
        cells = [[label, *(_cell((each.fidelity or {}).get(name)) for name in kinds)] for label, _, each in measured]
        section.tables.append(
            Table(
                "Fidelity: how closely the pruned model follows the dense one, without labels; ± is one standard error",
                heads,
                cells,
            )
        )


def _tasks(group: Group, section: Section) -> None:
    found: dict[str, dict[str, tuple[int | None, Figure]]] = {}  # by task and label, of several records the first one
    for label, place, each in group.measured():
        for task, figure in each.tasks.items():
            found.setdefault(task, {}).setdefault(label, (place, figure))
    for index, (task, by_label) in enumerate(found.items()):
        rows = [plots.Dot(label, figure, place) for label, (place, figure) in by_label.items()]
        dense = by_label[DENSE][1].value if DENSE in by_label else None
        section.pictures.append(plots.dots(f"{group.key}-task-{index}", f"Task {task}", "share right", rows, dense))
    labels = list(dict.fromkeys(label for by_label in found.values() for label in by_label))
    if found:
        cells = [
            [label, *(_cell(by_label[label][1] if label in by_label else None) for by_label in found.values())]
            for label in labels
        ]
        heads = ["model", *(f">{task}" for task in found)]
        section.tables.append(Table("Zero-shot tasks: share of items right, ± one standard error", heads, cells))


def _differences(group: Group, section: Section) -> None:
    rows = [
        [label, DENSE if names(group, quality.against or "") else str(quality.against), name, *_difference(figure)]
        for label, _, quality in group.measured()
        for name, figure in (quality.differences or {}).items()
    ]
    if rows:
        heads = ["model", "against", "what", ">value", ">95 % interval"]
        caption = "Paired: both models on the same windows and items. Of perplexity the ratio, of tasks the difference."
        section.tables.append(Table(caption, heads, rows))


def _text(label: str, prompt: str, text: str) -> Text:
    return Text(label, prompt, text.removeprefix(prompt))


def _named(group: Group, label: str, place: int | None) -> str:
    """A run by its label and, where that does not say it, its method."""
    method = label if place is None else group.runs[place].method
    return label if method in label else f"{label} ({method})"


def _cell(figure: Figure | None) -> str:
    return with_error(figure.value, figure.error) if figure else "–"


def _difference(figure: Figure) -> tuple[str, str]:
    known = figure.low is not None and figure.high is not None
    return with_error(figure.value, figure.error), f"{plain(figure.low)} to {plain(figure.high)}" if known else "–"
