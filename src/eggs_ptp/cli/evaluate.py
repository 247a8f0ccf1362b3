"""`eggs evaluate`: perplexity, fidelity to another model, zero-shot tasks, paired differences."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.evaluation.assessment import Assessment
    from eggs_ptp.evaluation.estimate import Difference
    from eggs_ptp.evaluation.fidelity import Fidelity
    from eggs_ptp.evaluation.perplexity import Perplexity

_TEXT = "Perplexity"
_TASKS = "Zero-shot tasks"


class Protocol(StrEnum):
    """How a text is cut into windows."""

    packed = "packed"
    documents = "documents"


Text = Annotated[
    str | None,
    typer.Option(
        help="A text, jsonl or Parquet file; wikitext2 or c4 (from the hub); demo. Default: wikitext2, for demo its "
        "built-in text; none where only --tasks is given.",
        rich_help_panel=_TEXT,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="The model it was made from: fidelity, and paired differences on the same windows and items, with both "
        "models in memory at once. Or a record of that model (--record): paired differences only."
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME,...",
        help="Tasks of lm-eval, from the hub, such as boolq,arc_easy; or, from local files, the papers' seven as "
        "boolq_local and so on. papers and papers_local are short for all seven.",
        rich_help_panel=_TASKS,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder with the files of *_local tasks.", rich_help_panel=_TASKS, show_default=False),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Use only the first items of each task.", rich_help_panel=_TASKS)
]
ProtocolFlag = Annotated[
    Protocol | None,
    typer.Option(
        "--protocol",
        help="packed: windows of the joined text; documents: each document by itself. Default: documents for jsonl, "
        "else packed.",
        rich_help_panel=_TEXT,
    ),
]
SeqLen = Annotated[
    int | None,
    typer.Option(
        "--seqlen",
        help="Tokens of each window. Default: 2048, or the model's context if shorter.",
        rich_help_panel=_TEXT,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Tokens between the starts of windows; if it is less than --seqlen, windows overlap and each token is "
        "predicted once. Default: --seqlen.",
        rich_help_panel=_TEXT,
    ),
]
MaxWindows = Annotated[
    int | None,
    typer.Option(min=1, help="Evaluate only the first windows or documents.", rich_help_panel=_TEXT),
]
TextField = Annotated[str, typer.Option(help="Field of a row that holds the text.", rich_help_panel=_TEXT)]
Record = Annotated[
    Path | None,
    typer.Option(
        help="Write a JSON record with the loss of every window and the score of every item.", show_default=False
    ),
]


@flags.with_flags
def evaluate(
    model: flags.Model,
    *,
    text: Text = None,
    against: Against = None,
    tasks: Tasks = None,
    data: Data = None,
    limit: Limit = None,
    protocol: ProtocolFlag = None,
    seqlen: SeqLen = None,
    stride: Stride = None,
    max_windows: MaxWindows = None,
    text_field: TextField = "text",
    run: flags.DeviceFlags,
    trust_remote_code: flags.TrustRemoteCode = False,
    record: Record = None,
    json: flags.Json = False,
) -> None:
    """Evaluate a model, pruned or not: perplexity, zero-shot accuracy, and the difference to another model."""
    from eggs_ptp import api
    from eggs_ptp.checkpoint.run_record import versions
    from eggs_ptp.cli.terminal import Progress, print_json
    from eggs_ptp.core.records import write_record

    with Progress("evaluate", quiet=json) as progress:
        assessment = api.assess(
            model,
            text,
            against=against,
            tasks=_task_names(tasks),
            data=data,
            limit=limit,
            protocol=protocol.value if protocol else None,
            seqlen=seqlen,
            stride=stride,
            max_windows=max_windows,
            text_field=text_field,
            trust_remote_code=trust_remote_code,
            progress=progress.count if progress.is_bar else None,
            **run.arguments(),
        )
    document = assessment.to_record(versions())
    if record is not None:
        write_record(record, document)
    if json:
        print_json(document)
    else:
        _print(assessment)


def _task_names(tasks: str | None) -> list[str]:
    """Return the names of `--tasks`, each once, with `papers` and `papers_local` expanded."""
    from eggs_ptp.evaluation.harness import LOCAL_TASKS, PAPER_TASKS

    task_sets = {"papers": PAPER_TASKS, "papers_local": LOCAL_TASKS}
    requested = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    return list(dict.fromkeys(task for name in requested for task in task_sets.get(name, (name,))))


def _print(assessment: "Assessment") -> None:
    from eggs_ptp.cli.terminal import format_duration, print_line, print_table

    columns = ["", f">{_short_name(assessment.model)}", ">± SE"]
    if assessment.reference is not None:
        columns += [f">{_short_name(str(assessment.against))}", ">difference", ">95 % interval"]
    print_table(columns, [*_perplexity_rows(assessment), *_task_rows(assessment)])
    if assessment.fidelity is not None:
        print_table(["fidelity to the other model", ">mean", ">± SE"], _fidelity_rows(assessment.fidelity))
    for note in _notes(assessment):
        print_line(note)
    print_line(f"evaluated in {format_duration(assessment.seconds)}, {assessment.dtype} on {assessment.device}")


def _perplexity_rows(assessment: "Assessment") -> list[list[str]]:
    measured = assessment.results.perplexity
    if measured is None:
        return []
    error = None if measured.standard_error is None else measured.value * measured.standard_error
    value = f"{measured.value:.4g}" if measured.value >= 1e5 else f"{measured.value:.3f}"
    perplexity = ["perplexity", value, _number_or_dash(error, 3)]
    nats = ["nats per token", f"{measured.nll:.4f}", _number_or_dash(measured.standard_error, 4)]
    reference = assessment.reference.perplexity if assessment.reference else None
    if reference:
        perplexity += [f"{reference.value:.3f}", *_difference_cells(assessment.perplexity_ratio(), 4, sign="x ")]
        nats += [f"{reference.nll:.4f}", "", ""]
    return [perplexity, nats]


def _task_rows(assessment: "Assessment") -> list[list[str]]:
    rows = []
    differences = assessment.task_differences()
    for name, task in assessment.results.tasks.items():
        for metric in task.scores:
            mean = task.mean(metric)
            row = [f"{name} {metric}", f"{mean.value:.4f}", _number_or_dash(mean.standard_error, 4)]
            if assessment.reference:
                reference_mean = assessment.reference.tasks[name].mean(metric)
                row += [f"{reference_mean.value:.4f}", *_difference_cells(differences[name][metric], 4)]
            rows.append(row)
    return rows


def _fidelity_rows(fidelity: "Fidelity") -> list[list[str]]:
    estimates = {"KL, nats": fidelity.kl, "top-1 agreement": fidelity.agreement}
    for block, estimate in enumerate(fidelity.hidden):
        estimates[f"|h' - h| / |h| after block {block}"] = estimate
    return [
        [name, f"{estimate.value:.5f}", _number_or_dash(estimate.standard_error, 5)]
        for name, estimate in estimates.items()
    ]


def _notes(assessment: "Assessment") -> list[str]:
    notes = []
    if assessment.results.perplexity is not None:
        notes.append(f"{assessment.text}: {_protocol_text(assessment.results.perplexity)}")
    if assessment.results.tasks:
        from importlib.metadata import version

        items = []
        for name, task in assessment.results.tasks.items():
            truncated = f" ({task.truncated} cut to the context)" if task.truncated else ""
            items.append(f"{name} {task.items} items{truncated}")
        notes.append(f"lm-eval {version('lm_eval')}: {', '.join(items)}")
    if assessment.reference is not None:
        notes.append("difference: paired over windows (of perplexities, the ratio) or items, with Student's t interval")
    return notes


def _protocol_text(perplexity: "Perplexity") -> str:
    """Describe windows, stride and tokens on one line."""
    if perplexity.protocol == "packed":
        overlap = f"at a stride of {perplexity.stride}"
        if perplexity.stride == perplexity.seqlen:
            overlap = "without overlap"
        windows = f"packed: {perplexity.windows} windows of {perplexity.seqlen} tokens, {overlap}"
    else:
        windows = (
            f"documents: {perplexity.windows} separate documents, {perplexity.truncated} cut at {perplexity.seqlen} "
            "tokens"
        )
    return f"{windows}; {perplexity.tokens} of {perplexity.text_tokens} tokens predicted"


def _difference_cells(difference: "Difference | None", digits: int, sign: str = "") -> list[str]:
    if difference is None:
        return ["", ""]
    value = f"{sign}{difference.value:.{digits}f}" if sign else f"{difference.value:+.{digits}f}"
    if difference.low is None or difference.high is None:
        return [value, "-"]
    if difference.low == difference.high:
        return [value, "no pair differs"]
    return [value, f"{difference.low:.{digits}f} to {difference.high:.{digits}f}"]


def _number_or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _short_name(model: str) -> str:
    return Path(model).name or model
