"""`eggs compare`: methods x patterns x seeds on one model."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.evaluate import Begin, Protocol

if TYPE_CHECKING:
    from eggs_ptp.cli.terminal import Progress
    from eggs_ptp.comparison.result import Comparison
    from eggs_ptp.comparison.runner import Estimate

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
BeginFlag = Annotated[
    Begin | None,
    typer.Option(
        "--begin",
        help="As for eggs evaluate; auto decides by the dense model for all runs.",
        rich_help_panel=_EVALUATION,
    ),
]
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
    begin: BeginFlag = None,
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
            begin=begin.value if begin else None,
            records=output,
            progress=run_progress(progress, quiet=json),
            on_estimate=None if json else print_estimate,
            **run.arguments(),
        )
    if json:
        print_json({"command": shlex.join(context.obj), **comparison.to_dict()})
    else:
        _print(comparison, format_)
    raise typer.Exit(2 if comparison.failed else 0)


def print_estimate(estimate: "Estimate") -> None:
    """Print how much there is to do: before the first run, and once the time of an evaluation is known."""
    from eggs_ptp.cli.terminal import format_duration, print_line

    recorded = estimate.runs - estimate.pending
    known = f" ({recorded} more are recorded)" if recorded else ""
    if estimate.evaluation_seconds is None:
        line = (
            f"{estimate.pending} runs{known}: pruning takes about {format_duration(estimate.pruning_seconds)}, "
            "evaluating comes on top; the dense model is evaluated first"
        )
    else:
        total = estimate.pruning_seconds + estimate.evaluation_seconds
        line = f"{estimate.pending} runs{known}: about {format_duration(total)} in all"
    print_line(f"compare: {line}", stderr=True)


def run_progress(progress: "Progress", *, quiet: bool) -> Callable[[int, int, str], None]:
    """Return a callback that shows each finished run, the time left and the peak of memory.

    Args:
        progress: What shows it.
        quiet: Show nothing.
    """

    def show(done: int, total: int, description: str) -> None:
        if not quiet:
            progress.count(done, total, description)

    return show


def _print(comparison: "Comparison", table_format: Format) -> None:
    from eggs_ptp.cli.terminal import console, print_line, print_table
    from eggs_ptp.comparison.table import DETAIL_HEADS, comma_separated, detail_rows, markdown, text_rows

    if table_format is Format.markdown:
        print_line(markdown(comparison))
        return
    if table_format is Format.csv:
        print_line(comma_separated(comparison))
        return
    if comparison.title:
        print_line(comparison.title, style="bold")
    rows = text_rows(comparison)
    heads = [*comparison.heads, *(f">{column}" for column in comparison.columns)]
    if table_width(heads, rows) <= console().width:
        print_table(heads, rows)
        print_line("mean ± standard deviation over seeds (difference to dense)")
    print_table([" ".join(comparison.heads), "column", *DETAIL_HEADS], detail_rows(comparison))
    dense = comparison.dense["evaluation"]
    print_line(
        f"dense {comparison.dense['perplexity']:.2f}; {dense['protocol']}, {dense['windows']} windows, "
        f"{dense['tokens']} tokens"
    )
    print_line(
        "× best: paired over the same windows, 95 % interval over windows; CPU s and MB: processor time and peak"
    )
    print_line("memory of pruning, means over seeds (inputs of the first block are shared between runs)")
    for remark in filter(None, [comparison.begin, *comparison.warnings, *comparison.remarks]):
        print_line(f"- {remark}")


def table_width(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the width of a printed table: the longest cell of each column, and 3 between columns."""
    columns = zip([head.removeprefix(">") for head in heads], *rows, strict=True)
    return sum(max(map(len, column)) + 3 for column in columns)
