"""`eggs compare`: methods x patterns x seeds on one model."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.evaluate import Protocol

if TYPE_CHECKING:
    from eggs_ptp.cli.terminal import Progress
    from eggs_ptp.comparison.result import Comparison

_TABLE = "Rows, columns and seeds"
_EVALUATION = "Evaluation"


class Format(StrEnum):
    """Formats of the printed table."""

    text = "text"
    markdown = "markdown"
    csv = "csv"


Methods = Annotated[
    str | None,
    typer.Option(help="Methods, separated by commas; a+b combines the steps of two.", rich_help_panel=_TABLE),
]
Patterns = Annotated[
    str | None,
    typer.Option(help="Patterns, separated by commas. Default: the recipe's, or 2:4.", rich_help_panel=_TABLE),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of seeds, for methods that depend on the seed. Default: 3.", rich_help_panel=_TABLE
    ),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="A comparison or a recipe in TOML, or a shipped one, the tables of the Symmetric Pruning paper: "
        "table-2, 3, 4, 5, 7, 8, 9, 10, 10-search. Flags override it.",
        rich_help_panel=_TABLE,
        show_default=False,
    ),
]
Text = Annotated[str | None, typer.Option(help="As for eggs evaluate.", rich_help_panel=_EVALUATION)]
TextField = Annotated[str | None, typer.Option(help="As for eggs evaluate.", rich_help_panel=_EVALUATION)]
ProtocolFlag = Annotated[Protocol | None, typer.Option(help="As for eggs evaluate.", rich_help_panel=_EVALUATION)]
EvalSeqLen = Annotated[
    int | None,
    typer.Option("--eval-seqlen", min=2, help="--seqlen of eggs evaluate.", rich_help_panel=_EVALUATION),
]
MaxWindows = Annotated[int | None, typer.Option(min=1, help="As for eggs evaluate.", rich_help_panel=_EVALUATION)]
Records = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for a record of each run; recorded runs are not run again."),
]
FormatFlag = Annotated[Format, typer.Option("--format", help="Format of the table.")]


@dataclass(frozen=True)
class ProtocolFlags:
    """Options that say how models are calibrated and evaluated in a comparison."""

    overrides: flags.Set = None
    calibration: flags.Calibration = None
    nsamples: flags.NSamples = None
    seqlen: flags.SeqLen = None
    text: Text = None
    text_field: TextField = None
    eval_seqlen: EvalSeqLen = None
    max_windows: MaxWindows = None


@flags.with_flags
def compare(
    context: typer.Context,
    model: flags.Model,
    *,
    methods: Methods = None,
    patterns: Patterns = None,
    seeds: Seeds = None,
    recipe: File = None,
    settings: ProtocolFlags,
    protocol: ProtocolFlag = None,
    output: Records = None,
    format_: FormatFlag = Format.text,
    run: flags.DeviceFlags,
    json: flags.Json = False,
) -> None:
    """Prune a model by several methods, patterns and seeds; compare the perplexities. Exit code 2 if a run fails."""
    from eggs_ptp.cli.terminal import Progress, print_json
    from eggs_ptp.comparison import file, runner
    from eggs_ptp.demo.builtin import DEMO

    grid = file.read_comparison(
        recipe,
        settings.overrides or [],
        methods=methods.split(",") if methods is not None else None,
        patterns=patterns.split(",") if patterns is not None else None,
        seeds=seeds,
        calibration=settings.calibration or (DEMO if model == DEMO else None),
        nsamples=settings.nsamples,
        seqlen=settings.seqlen,
    )
    with Progress("compare", quiet=json) as progress:
        comparison = runner.compare(
            grid,
            model,
            text=settings.text,
            text_field=settings.text_field,
            protocol=protocol.value if protocol else None,
            seqlen=settings.eval_seqlen,
            max_windows=settings.max_windows,
            records=output,
            progress=run_progress("compare", progress, quiet=json),
            **run.arguments(),
        )
    if json:
        print_json({"command": shlex.join(context.obj), **comparison.to_dict()})
    else:
        _print(comparison, format_)
    raise typer.Exit(2 if comparison.failed else 0)


def run_progress(verb: str, progress: "Progress", *, quiet: bool) -> Callable[[int, int, str], None]:
    """Return a callback that shows each finished run: in the progress bar, or as a line where there is none.

    Args:
        verb: Starts each line.
        progress: The progress bar.
        quiet: Show nothing.
    """
    from eggs_ptp.cli.terminal import print_line

    def show(done: int, total: int, description: str) -> None:
        if progress.is_bar:
            progress.count(done, total)
        elif not quiet:
            print_line(f"{verb}: {done}/{total} {description}", stderr=True)

    return show


def _print(comparison: "Comparison", table_format: Format) -> None:
    from eggs_ptp.cli.terminal import print_line, print_table
    from eggs_ptp.comparison.table import comma_separated, markdown, text_rows

    if table_format is Format.markdown:
        print_line(markdown(comparison))
        return
    if table_format is Format.csv:
        print_line(comma_separated(comparison))
        return
    if comparison.title:
        print_line(comparison.title, style="bold")
    columns = [f">{column}" for column in comparison.columns]
    print_table([*comparison.heads, *columns], text_rows(comparison))
    dense = comparison.dense["evaluation"]
    print_line(
        f"perplexity, mean ± standard deviation over seeds (difference to dense); {dense['protocol']}, "
        f"{dense['windows']} windows, {dense['tokens']} tokens"
    )
    for remark in comparison.remarks:
        print_line(f"- {remark}")
