"""`eggs reproduce`: the papers' tables and figures on any model, by comparisons that `eggs compare` could run."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.compare import EvalSeqLen, MaxWindows, Records, Seeds, Text, TextField
from eggs_ptp.cli.flags import DType

if TYPE_CHECKING:
    from eggs_ptp.comparison.published import Published
    from eggs_ptp.comparison.reproduction import Asked, Number, Reproduction

_ZERO_SHOT = "Zero-shot tables"

Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="A table or figure, such as table-2; without it all are listed."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A model folder, a hub name, or demo. Without it the paper's numbers are shown.",
        metavar="MODEL",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the files of *_local tasks, to take in place of the hub's; see eggs evaluate. Their numbers "
        "never stand beside the paper's.",
        rich_help_panel=_ZERO_SHOT,
        show_default=False,
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Take so many items of each task, from the start.", rich_help_panel=_ZERO_SHOT)
]
Matrix = Annotated[
    str | None,
    typer.Option(help="Matrix that figure-1 draws. Default: the first of the middle block.", show_default=False),
]


def reproduce(
    context: typer.Context,
    name: Name = None,
    model: Model = None,
    seeds: Seeds = None,
    set_: flags.Set = None,
    calibration: flags.Calibration = None,
    nsamples: flags.NSamples = None,
    seqlen: flags.SeqLen = None,
    text: Text = None,
    text_field: TextField = None,
    eval_seqlen: EvalSeqLen = None,
    max_windows: MaxWindows = None,
    data: Data = None,
    limit: Limit = None,
    matrix: Matrix = None,
    output: Records = None,
    device: flags.Device = "auto",
    dtype: flags.DTypeFlag = DType.auto,
    json: flags.Json = False,
) -> None:
    """Run a table or figure of the papers on any model, the paper's numbers beside ours. Exit code 2 if a run fails.

    A perplexity or accuracy stands beside the paper's only where the model is one of the paper's and was measured as
    there. With -o, the list says how much is recorded there.
    """
    from eggs_ptp.cli.published_text import list_published, show_published
    from eggs_ptp.comparison.published import find_published
    from eggs_ptp.comparison.reproduction import Asked

    where: dict[str, Any] = {"device": device, "dtype": dtype.value}
    asked = Asked(
        set_ or (),
        seeds,
        calibration,
        nsamples,
        seqlen,
        text,
        text_field,
        eval_seqlen,
        max_windows,
        data,
        limit,
    )
    if name is None:
        list_published(model, asked, output, where, json)
        return
    item = find_published(name)
    if matrix is not None and item.measure != "picture":
        raise typer.BadParameter(f"--matrix is for pictures; {name} is none")
    if item.measure == "speed":
        _point(item, model, json)
    elif model is None:
        show_published(item, json)
    elif item.measure == "picture":
        _draw(context, item, model, matrix, output, json)
    else:
        _run(context, item, model, asked, {**where, "records": output}, json)


def _point(item: "Published", model: str | None, json: bool) -> None:
    """Speed is measured by `eggs bench` alone."""
    from eggs_ptp.cli.terminal import line, print_json

    source = shlex.quote(model or item.models[0].hub)
    commands = [
        f"eggs prune {source} --method eggs_paper --pattern 2:4 -o out/pruned",
        "eggs export out/pruned --format packed -o out/packed",
        "eggs bench out/packed --record out/bench.json",
    ]
    (paper,) = item.numbers.values()
    if json:
        print_json(
            {"name": item.name, "source": item.source, "paper": paper, "notes": item.notes, "commands": commands}
        )
        return
    line(f"{item.source}: {item.title}", style="bold")
    line(f"{item.models[0].title}: {paper} times as fast as dense, says the paper ({'; '.join(item.notes)}).")
    line("Speed is measured by eggs bench, on the machine where it matters:")
    for command in commands:
        line(f"  {command}")
    line("eggs bench measures on the processor; on an NVIDIA GPU run benchmarks/gpu.py of this project's repository.")


def _draw(
    context: typer.Context, item: "Published", model: str, matrix: str | None, output: Path | None, json: bool
) -> None:
    from eggs_ptp.cli.terminal import line, print_json
    from eggs_ptp.comparison.heat_map import heat_map, matrix_of, stripes

    if output is None:
        raise typer.BadParameter(f"{item.name} is a picture: name a folder for it with -o")
    name, weight = matrix_of(model, matrix)
    found, picture = stripes(weight), heat_map(name, weight)
    files = [str(path) for path in picture.write(output)]
    if json:
        kind = {"kind": "reproduction", "name": item.name, "measure": item.measure, "source": item.source}
        what = {"model": model, "matrix": name, "stripes": found.to_dict(), "files": files}
        print_json({"command": shlex.join(context.obj), **kind, **what})
        return
    line(picture.description)
    line(f"{item.source}: no numbers, and another matrix ({', '.join(item.notes)})")
    line(f"drawn: {', '.join(files)}")


def _run(
    context: typer.Context, item: "Published", model: str, asked: "Asked", where: dict[str, Any], json: bool
) -> None:
    from eggs_ptp.cli.terminal import Progress, line, print_json
    from eggs_ptp.comparison.reproduction import reproduce as run

    with Progress("reproduce", quiet=json) as progress:

        def tell(done: int, total: int, what: str) -> None:
            if progress.is_bar:
                progress.count(done, total)
            elif not json:
                line(f"reproduce: {done}/{total} {what}", stderr=True)

        found = run(item, model, asked, progress=tell, **where)
    if json:
        print_json({"command": shlex.join(context.obj), **found.to_dict()})
    else:
        _print(found)
    raise typer.Exit(2 if found.comparison.failed else 0)


def _print(found: "Reproduction") -> None:
    from eggs_ptp.cli.terminal import line, table

    beside = any(cell.paper for cell in found.numbers)
    heads = [f">{column}" for column in found.columns for column in ([column, "paper"] if beside else [column])]
    cells = {(cell.row, cell.column): cell for cell in found.numbers}
    rows = []
    for row in ((), *found.comparison.rows):
        labels = row or ("Dense", *"-" * (len(found.comparison.heads) - 1))
        numbers = [cells[row, column] for column in found.columns]
        rows.append([*labels, *(text for cell in numbers for text in _texts(cell, beside))])
    line(f"{found.published.source}: {found.published.title}", style="bold")
    table([*found.comparison.heads, *heads], rows)
    dense = found.comparison.dense["evaluation"]
    if found.published.measure == "accuracy":
        scored = [task["acc"]["standard_error"] for task in found.comparison.dense["tasks"].values()]
        errors = [100 * error for error in scored if error is not None]
        spread = f"; standard errors, dense: {min(errors):.1f} to {max(errors):.1f}" if errors else ""
        line(f"accuracy (acc of lm-eval), per cent{spread}")
    else:
        line(f"perplexity; {dense['protocol']}, {dense['windows']} windows, {dense['tokens']} tokens predicted")
    for words, ours, paper in found.claims:
        line(f"{words}: ours {ours:.2f} %, the paper's mean over its models {paper} %")
    if not beside:
        line(f"the paper's numbers are not set beside: {found.why_not or 'none is known for this model'}")
    for remark in (*found.remarks, *(found.published.notes if beside or found.claims else ())):
        line(f"- {remark}")


def _texts(cell: "Number", beside: bool) -> list[str]:
    ours = "-"
    if cell.ours is not None:
        ours = f"{cell.ours:.2f}" + (f" ± {cell.deviation:.2f}" if cell.deviation is not None else "")
    paper = (cell.paper or "") + (f" ± {cell.paper_deviation}" if cell.paper_deviation else "")
    return [ours, paper] if beside else [ours]
