"""`eggs reproduce`: the papers' tables and figures on any model, as comparisons that `eggs compare` could run."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.compare import ProtocolFlags, Records, Seeds, run_progress

if TYPE_CHECKING:
    from eggs_ptp.research.reproduction.published import Published
    from eggs_ptp.research.reproduction.reproduction import Number, ProtocolSettings, Reproduction

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
        help="Folder with the files of *_local tasks, used in place of the hub's; see eggs evaluate. Their numbers "
        "are never compared with the paper's.",
        rich_help_panel=_ZERO_SHOT,
        show_default=False,
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Use only the first items of each task.", rich_help_panel=_ZERO_SHOT)
]
Matrix = Annotated[
    str | None,
    typer.Option(help="Matrix that figure-1 draws. Default: the first of the middle block.", show_default=False),
]


@flags.with_flags
def reproduce(
    context: typer.Context,
    name: Name = None,
    model: Model = None,
    *,
    seeds: Seeds = None,
    protocol: ProtocolFlags,
    data: Data = None,
    limit: Limit = None,
    matrix: Matrix = None,
    output: Records = None,
    run: flags.DeviceFlags,
    json: flags.Json = False,
) -> None:
    """Run a table or figure of the papers on any model, next to the paper's numbers. Exit code 2 if a run fails.

    A perplexity or accuracy is compared with the paper's only where the model is one of the paper's and the
    evaluation is the paper's. With -o, the list shows how many runs are recorded there.
    """
    from eggs_ptp.cli.paper_tables import list_published, show_published
    from eggs_ptp.research.reproduction.published import find_published
    from eggs_ptp.research.reproduction.reproduction import ProtocolSettings

    settings = ProtocolSettings(
        overrides=protocol.overrides or (),
        seeds=seeds,
        calibration=protocol.calibration,
        nsamples=protocol.nsamples,
        seqlen=protocol.seqlen,
        text=protocol.text,
        text_field=protocol.text_field,
        eval_seqlen=protocol.eval_seqlen,
        max_windows=protocol.max_windows,
        data=data,
        limit=limit,
    )
    device = run.arguments()
    if name is None:
        list_published(model, settings, output, device, json)
        return
    item = find_published(name)
    if matrix is not None and item.measure != "picture":
        raise typer.BadParameter(f"--matrix is for figures; {name} is not a figure")
    if item.measure == "speed":
        _print_bench_commands(item, model, json)
    elif model is None:
        show_published(item, json)
    elif item.measure == "picture":
        _draw(context, item, model, matrix, output, json)
    else:
        _run(context, item, model, settings, {**device, "records": output}, json)


def _print_bench_commands(item: "Published", model: str | None, json: bool) -> None:
    """Print the commands that measure speed, which `eggs bench` does."""
    from eggs_ptp.cli.terminal import print_json, print_line

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
    print_line(f"{item.source}: {item.title}", style="bold")
    print_line(f"The paper: {item.models[0].title} is {paper} times as fast as dense ({'; '.join(item.notes)}).")
    print_line("eggs bench measures speed, on the machine that will run the model:")
    for command in commands:
        print_line(f"  {command}")
    print_line("eggs bench measures on the CPU; on an NVIDIA GPU run benchmarks/gpu.py of this project's repository.")


def _draw(
    context: typer.Context, item: "Published", model: str, matrix: str | None, output: Path | None, json: bool
) -> None:
    from eggs_ptp.cli.terminal import print_json, print_line
    from eggs_ptp.research.reproduction.heat_map import heat_map, read_matrix, stripes

    if output is None:
        raise typer.BadParameter(f"{item.name} is a figure: give a folder for its files with -o")
    name, weight = read_matrix(model, matrix)
    matrix_stripes = stripes(weight)
    picture = heat_map(name, weight)
    files = [str(path) for path in picture.write(output)]
    if json:
        print_json(
            {
                "command": shlex.join(context.obj),
                "kind": "reproduction",
                "name": item.name,
                "measure": item.measure,
                "source": item.source,
                "model": model,
                "matrix": name,
                "stripes": matrix_stripes.to_dict(),
                "files": files,
            }
        )
        return
    print_line(picture.description)
    print_line(f"{item.source}: no numbers, and another matrix ({', '.join(item.notes)})")
    print_line(f"Written to {', '.join(files)}")


def _run(
    context: typer.Context,
    item: "Published",
    model: str,
    settings: "ProtocolSettings",
    arguments: dict[str, Any],
    json: bool,
) -> None:
    from eggs_ptp.cli.terminal import Progress, print_json
    from eggs_ptp.research.reproduction.reproduction import reproduce as run_table

    with Progress("reproduce", quiet=json) as progress:
        show_progress = run_progress(progress, quiet=json)
        reproduction = run_table(item, model, settings, progress=show_progress, **arguments)
    if json:
        print_json({"command": shlex.join(context.obj), **reproduction.to_dict()})
    else:
        _print(reproduction)
    raise typer.Exit(2 if reproduction.comparison.failed else 0)


def _print(reproduction: "Reproduction") -> None:
    from eggs_ptp.cli.terminal import print_line, print_table

    table = reproduction.published
    comparison = reproduction.comparison
    with_paper = any(cell.paper for cell in reproduction.numbers)
    columns = list(comparison.heads)
    for column in reproduction.columns:
        columns += [f">{column}", ">paper"] if with_paper else [f">{column}"]
    cells = {(cell.row, cell.column): cell for cell in reproduction.numbers}
    rows = []
    for labels in ((), *comparison.rows):
        row = list(labels or ("Dense", *"-" * (len(comparison.heads) - 1)))
        for column in reproduction.columns:
            row += _cell_texts(cells[labels, column], with_paper=with_paper)
        rows.append(row)
    print_line(f"{table.source}: {table.title}", style="bold")
    print_table(columns, rows)
    print_line(_protocol_line(reproduction))
    for statement, measured, paper in reproduction.claims:
        print_line(f"{statement}: measured {measured:.2f} %, the paper's mean over its models {paper} %")
    if not with_paper:
        reason = reproduction.why_not_comparable or "it has none for this model"
        print_line(f"the paper's numbers are not shown: {reason}")
    notes = table.notes if with_paper or reproduction.claims else ()
    for remark in (*reproduction.remarks, *notes):
        print_line(f"- {remark}")


def _protocol_line(reproduction: "Reproduction") -> str:
    dense = reproduction.comparison.dense
    if reproduction.published.measure != "accuracy":
        evaluation = dense["evaluation"]
        begin = reproduction.comparison.begin
        return (
            f"perplexity; {evaluation['protocol']}, {evaluation['windows']} windows, "
            f"{evaluation['tokens']} tokens predicted{f'; {begin}' if begin else ''}"
        )
    standard_errors = [task["acc"]["standard_error"] for task in dense["tasks"].values()]
    percents = [100 * error for error in standard_errors if error is not None]
    spread = f"; standard errors, dense: {min(percents):.1f} to {max(percents):.1f}" if percents else ""
    return f"accuracy (acc of lm-eval), per cent{spread}"


def _cell_texts(cell: "Number", *, with_paper: bool) -> list[str]:
    measured = "-"
    if cell.measured is not None:
        deviation = f" ± {cell.deviation:.2f}" if cell.deviation is not None else ""
        measured = f"{cell.measured:.2f}{deviation}"
    if not with_paper:
        return [measured]
    paper_deviation = f" ± {cell.paper_deviation}" if cell.paper_deviation else ""
    return [measured, f"{cell.paper or ''}{paper_deviation}"]
