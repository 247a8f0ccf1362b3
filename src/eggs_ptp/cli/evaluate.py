"""`eggs evaluate`: perplexity, fidelity to another model, zero-shot tasks, paired differences."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.flags import DType

if TYPE_CHECKING:
    from eggs_ptp.evaluation.assessment import Assessment
    from eggs_ptp.evaluation.estimate import Difference, Estimate
    from eggs_ptp.evaluation.perplexity import Perplexity

_TEXT = "Perplexity"
_TASKS = "Zero-shot tasks"


class Protocol(StrEnum):
    """How text becomes windows."""

    packed = "packed"
    documents = "documents"


Text = Annotated[
    str | None,
    typer.Option(
        help="Text, jsonl or Parquet file; wikitext2 or c4 (from the hub); demo. Default: wikitext2, for demo its own "
        "text; none where only --tasks are asked for.",
        rich_help_panel=_TEXT,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="The model it was made from: fidelity, and paired differences on the same windows and items, with both "
        "models in memory at once. Or a record of it (--record): paired differences alone."
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME,...",
        help="Tasks of lm-eval, from the hub, such as boolq,arc_easy; the papers' seven from files of yours as "
        "boolq_local and so on. papers and papers_local stand for the seven.",
        rich_help_panel=_TASKS,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder with the files of *_local tasks.", rich_help_panel=_TASKS, show_default=False),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Take so many items of each task, from the start.", rich_help_panel=_TASKS)
]
ProtocolFlag = Annotated[
    Protocol | None,
    typer.Option(
        "--protocol",
        help="Windows of the joined text, or every document on its own. Default: documents for jsonl, else packed.",
        rich_help_panel=_TEXT,
    ),
]
SeqLen = Annotated[
    int | None,
    typer.Option(
        "--seqlen",
        help="Tokens in a window. Default: 2048, or the model's context if shorter.",
        rich_help_panel=_TEXT,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Tokens from window to window; below --seqlen they overlap, and each token is predicted once. "
        "Default: --seqlen.",
        rich_help_panel=_TEXT,
    ),
]
MaxWindows = Annotated[
    int | None,
    typer.Option(min=1, help="Score so many windows or documents, from the start.", rich_help_panel=_TEXT),
]
TextField = Annotated[str, typer.Option(help="Where a row of the file has its text.", rich_help_panel=_TEXT)]
Record = Annotated[
    Path | None,
    typer.Option(
        help="Write a JSON record with the loss of every window and the score of every item.", show_default=False
    ),
]


def evaluate(
    model: flags.Model,
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
    device: flags.Device = "auto",
    dtype: flags.DTypeFlag = DType.auto,
    trust_remote_code: flags.TrustRemoteCode = False,
    record: Record = None,
    json: flags.Json = False,
) -> None:
    """Measure a model, pruned or not: perplexity, zero-shot accuracy, and how it differs from another model."""
    from eggs_ptp import api
    from eggs_ptp.checkpoint.record import versions
    from eggs_ptp.cli.terminal import Progress, print_json
    from eggs_ptp.evaluation.record import write_record

    with Progress("evaluate", quiet=json) as progress:
        found = api.assess(
            model,
            text,
            against=against,
            tasks=_names(tasks),
            data=data,
            limit=limit,
            protocol=protocol.value if protocol else None,
            seqlen=seqlen,
            stride=stride,
            max_windows=max_windows,
            text_field=text_field,
            device=device,
            dtype=dtype.value,
            trust_remote_code=trust_remote_code,
            progress=progress.count if progress.is_bar else None,
        )
    whole = found.to_record(versions())
    if record is not None:
        write_record(record, whole)
    if json:
        print_json(whole)
    else:
        _show(found)


def _names(tasks: str | None) -> list[str]:
    from eggs_ptp.evaluation.harness import LOCAL, TASKS

    sets = {"papers": TASKS, "papers_local": LOCAL}
    asked = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    return list(dict.fromkeys(name for each in asked for name in sets.get(each, (each,))))


def _show(found: "Assessment") -> None:
    from eggs_ptp.cli.terminal import line, seconds_text, table

    pair = found.reference is not None
    heads = ["", f">{_short(found.model)}", ">± SE"]
    table([*heads, f">{_short(str(found.against))}", ">difference", ">95 % interval"] if pair else heads, _rows(found))
    if found.fidelity is not None:
        table(["fidelity to the other model", ">mean", ">± SE"], _fidelity_rows(found))
    for text in _notes(found):
        line(text)
    line(f"measured in {seconds_text(found.seconds)}, {found.dtype} on {found.device}")


def _rows(found: "Assessment") -> list[list[str]]:
    rows = []
    ours, theirs = found.results, found.reference
    if ours.perplexity is not None:
        one = ours.perplexity
        error = None if one.standard_error is None else one.value * one.standard_error
        rows.append(["perplexity", f"{one.value:.4g}" if one.value >= 1e5 else f"{one.value:.3f}", _or_dash(error, 3)])
        if theirs and theirs.perplexity:
            rows[-1] += [f"{theirs.perplexity.value:.3f}", *_difference(found.perplexity_ratio(), 4, "x ")]
        rows.append(["nats a token", f"{one.nll:.4f}", _or_dash(one.standard_error, 4)])
        if theirs and theirs.perplexity:
            rows[-1] += [f"{theirs.perplexity.nll:.4f}", "", ""]
    differences = found.task_differences()
    for name, task in ours.tasks.items():
        for metric in task.scores:
            mean: Estimate = task.mean(metric)
            rows.append([f"{name} {metric}", f"{mean.value:.4f}", _or_dash(mean.standard_error, 4)])
            if theirs:
                rows[-1] += [
                    f"{theirs.tasks[name].mean(metric).value:.4f}",
                    *_difference(differences[name][metric], 4, ""),
                ]
    return rows


def _fidelity_rows(found: "Assessment") -> list[list[str]]:
    assert found.fidelity is not None  # noqa: S101 - _show asks for them only where there is one
    hidden = {f"|h' - h| / |h| behind block {block}": one for block, one in enumerate(found.fidelity.hidden)}
    named = {"KL, nats": found.fidelity.kl, "top-1 agreement": found.fidelity.agreement, **hidden}
    return [[name, f"{one.value:.5f}", _or_dash(one.standard_error, 5)] for name, one in named.items()]


def _notes(found: "Assessment") -> list[str]:
    notes = []
    if found.results.perplexity is not None:
        notes.append(f"{found.text}: {_account(found.results.perplexity)}")
    if found.results.tasks:
        from importlib.metadata import version

        items = ", ".join(
            f"{name} {task.items} items" + (f" ({task.truncated} cut to the context)" if task.truncated else "")
            for name, task in found.results.tasks.items()
        )
        notes.append(f"lm-eval {version('lm_eval')}: {items}")
    if found.reference is not None:
        notes.append("difference: of the pairs of windows (perplexity: the ratio) or items, with Student's t interval")
    return notes


def _account(one: "Perplexity") -> str:
    """Windows, stride and tokens in a line."""
    if one.protocol == "packed":
        overlap = "without overlap" if one.stride == one.seqlen else f"at a stride of {one.stride}"
        windows = f"packed: {one.windows} windows of {one.seqlen} tokens, {overlap}"
    else:
        windows = f"documents: {one.windows} on their own, {one.truncated} cut at {one.seqlen} tokens"
    return f"{windows}; {one.tokens} of {one.text_tokens} tokens predicted"


def _difference(found: "Difference | None", digits: int, sign: str) -> list[str]:
    if found is None:
        return ["", ""]
    value = f"{sign}{found.value:.{digits}f}" if sign else f"{found.value:+.{digits}f}"
    if found.low is None or found.high is None:
        return [value, "-"]
    if found.low == found.high:
        return [value, "no pair differs"]
    return [value, f"{found.low:.{digits}f} to {found.high:.{digits}f}"]


def _or_dash(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _short(model: str) -> str:
    return Path(model).name or model
