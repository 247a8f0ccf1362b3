"""`eggs evaluate`: perplexity, fidelity to another model, zero-shot tasks, paired differences."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.evaluation.assessment import Assessment
    from eggs_ptp.evaluation.estimate import Difference
    from eggs_ptp.evaluation.fidelity import Fidelity
    from eggs_ptp.evaluation.perplexity import Perplexity
    from eggs_ptp.evaluation.verdict import Verdict

_TEXT = "Perplexity"
_TASKS = "Zero-shot tasks"


class Protocol(StrEnum):
    """How a text is cut into windows."""

    packed = "packed"
    documents = "documents"


class Begin(StrEnum):
    """How packed windows begin."""

    auto = "auto"
    always = "always"
    never = "never"


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
        help="packed: windows of the joined text; documents: each document by itself. Default: documents for files of "
        "rows (jsonl, json, Parquet), else packed.",
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
BeginFlag = Annotated[
    Begin,
    typer.Option(
        "--begin",
        help="Whether packed windows begin with the begin token: always; never, as in papers; or auto: only for models "
        "that are broken without it.",
        rich_help_panel=_TEXT,
    ),
]
TextField = Annotated[str, typer.Option(help="Field of a row that holds the text.", rich_help_panel=_TEXT)]
Record = Annotated[
    Path | None,
    typer.Option(
        help="Write a JSON record with the loss of every window and the score of every item.", show_default=False
    ),
]

Full = Annotated[bool, typer.Option("--full", help="Show the hidden-state error of every block.")]


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
    begin: BeginFlag = Begin.auto,
    text_field: TextField = "text",
    run: flags.DeviceFlags,
    trust_remote_code: flags.TrustRemoteCode = False,
    record: Record = None,
    full: Full = False,
    json: flags.Json = False,
) -> None:
    """Evaluate a model, pruned or not: perplexity, zero-shot accuracy, and the difference to another model."""
    from eggs_ptp import api
    from eggs_ptp.checkpoint.run_record import versions
    from eggs_ptp.cli.terminal import LINE_SECONDS, Progress, format_bytes, print_json, print_line
    from eggs_ptp.core.records import write_record

    def print_expected_memory(total: int) -> None:
        if not json:
            print_line(f"evaluate: expects {format_bytes(total)} of memory at the peak", stderr=True)

    with Progress("evaluate", quiet=json, interval=LINE_SECONDS) as progress:
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
            begin=begin.value,
            text_field=text_field,
            trust_remote_code=trust_remote_code,
            progress=progress.count,
            on_memory=print_expected_memory,
            **run.arguments(),
        )
    peak, baseline = progress.memory
    document = {**assessment.to_record(versions()), "peak_memory_bytes": peak, "baseline_memory_bytes": baseline}
    if record is not None:
        write_record(record, document)
    if json:
        print_json(document)
    else:
        _print(assessment, progress.memory_text(), full=full)


def _task_names(tasks: str | None) -> list[str]:
    """Return the names of `--tasks`, each once, with `papers` and `papers_local` expanded."""
    from eggs_ptp.evaluation.harness import LOCAL_TASKS, PAPER_TASKS

    task_sets = {"papers": PAPER_TASKS, "papers_local": LOCAL_TASKS}
    requested = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    return list(dict.fromkeys(task for name in requested for task in task_sets.get(name, (name,))))


def _print(assessment: "Assessment", memory: str, *, full: bool) -> None:
    from eggs_ptp.cli.terminal import format_duration, print_line, print_table

    verdict = verdict_of(assessment)
    if verdict is not None:
        print_line(f"Verdict: {verdict.text}", style="bold")
    columns = ["", f">{_short_name(assessment.model)}", ">± SE"]
    if assessment.reference is not None:
        columns += [f">{_short_name(str(assessment.against))}", ">difference", ">95 % interval"]
    print_table(columns, [*_perplexity_rows(assessment), *_task_rows(assessment)])
    if assessment.fidelity is not None:
        print_table(["fidelity to the other model", ">mean", ">± SE"], _fidelity_rows(assessment.fidelity, full=full))
    for note in _notes(assessment):
        print_line(note)
    where = f"{assessment.dtype} on {assessment.device}"
    print_line(f"evaluated in {format_duration(assessment.seconds)}, {where}, {memory}")


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


def _fidelity_rows(fidelity: "Fidelity", *, full: bool) -> list[list[str]]:
    """Return rows of KL, agreement and hidden states: after every block if `full`, else the worst and the last."""
    estimates = {"KL, nats": fidelity.kl, "top-1 agreement": fidelity.agreement}
    last = len(fidelity.hidden) - 1
    worst = max(range(len(fidelity.hidden)), key=lambda block: fidelity.hidden[block].value, default=0)
    for block, estimate in enumerate(fidelity.hidden):
        if full or block in (worst, last):
            remark = "" if full else " (last)" if block == last else " (worst)"
            estimates[f"|h' - h| / |h| after block {block}{remark}"] = estimate
    return [
        [name, f"{estimate.value:.5f}", _number_or_dash(estimate.standard_error, 5)]
        for name, estimate in estimates.items()
    ]


def verdict_of(assessment: "Assessment") -> "Verdict | None":
    """Return what the perplexity ratio means; None if there is no ratio, or both models are the same."""
    from eggs_ptp.cli.prune import calibration_tokens
    from eggs_ptp.evaluation.verdict import judge_ratio

    ratio = assessment.perplexity_ratio()
    if ratio is None or assessment.model == assessment.against:
        return None
    interval = None if ratio.low is None or ratio.high is None else (ratio.low, ratio.high)
    manifest = _manifest_or_empty(Path(assessment.model))
    methods = {str(matrix.get("method")) for matrix in manifest.get("matrices", ())}
    tokens = calibration_tokens(manifest["calibration"]) if "calibration" in manifest else None
    return judge_ratio(ratio.value, interval, method=" ".join(sorted(methods)), calibration_tokens=tokens)


def _manifest_or_empty(folder: Path) -> dict[str, Any]:
    """Return the record of a pruned folder; empty for other models, and where it cannot be read."""
    from eggs_ptp.checkpoint.verify import read_manifest
    from eggs_ptp.errors import EggsError

    try:
        return dict(read_manifest(folder))
    except EggsError:
        return {}


def _notes(assessment: "Assessment") -> list[str]:
    from eggs_ptp.evaluation.verdict import little_text

    notes = []
    if assessment.results.perplexity is not None:
        measured = assessment.results.perplexity
        notes.append(f"{assessment.text}: {_protocol_text(measured)}")
        if warning := little_text(measured.windows, measured.tokens):
            notes.append(warning)
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
    from eggs_ptp.evaluation.begin_rule import describe_begin

    if perplexity.protocol == "packed":
        overlap = f"at a stride of {perplexity.stride}"
        if perplexity.stride == perplexity.seqlen:
            overlap = "without overlap"
        windows = f"packed: {perplexity.windows} windows of {perplexity.seqlen} tokens, {overlap}"
        if begin := describe_begin(perplexity.begin_tokens, perplexity.begin_reason):
            windows += f"; {begin}"
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
