"""`eggs compare`: methods x patterns x seeds on one model."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.evaluate import Protocol
from eggs_ptp.cli.flags import DType

if TYPE_CHECKING:
    from eggs_ptp.comparison.result import Comparison

_TABLE = "Rows, columns and seeds"
_EVALUATION = "Evaluation"


class Format(StrEnum):
    """How the table is printed."""

    text = "text"
    markdown = "markdown"
    csv = "csv"


Methods = Annotated[
    str | None, typer.Option(help="Names with commas between them; a+b joins steps.", rich_help_panel=_TABLE)
]
Patterns = Annotated[
    str | None,
    typer.Option(help="Patterns with commas between them. Default: the recipe's, or 2:4.", rich_help_panel=_TABLE),
]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, help="How many, for methods that a seed can change. Default: 3.", rich_help_panel=_TABLE),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="A comparison or a recipe in TOML, or a shipped one, the tables of the Symmetric Pruning paper: "
        "table-2, 3, 4, 5, 7, 8, 9, 10, 10-search. Flags change it.",
        rich_help_panel=_TABLE,
        show_default=False,
    ),
]
Text = Annotated[str | None, typer.Option(help="As for eggs evaluate.", rich_help_panel=_EVALUATION)]
TextField = Annotated[str | None, typer.Option(help="As for eggs evaluate.", rich_help_panel=_EVALUATION)]
Scored = Annotated[Protocol | None, typer.Option(help="As for eggs evaluate.", rich_help_panel=_EVALUATION)]
EvalSeqLen = Annotated[
    int | None,
    typer.Option("--eval-seqlen", min=2, help="--seqlen of eggs evaluate.", rich_help_panel=_EVALUATION),
]
MaxWindows = Annotated[int | None, typer.Option(min=1, help="As for eggs evaluate.", rich_help_panel=_EVALUATION)]
Records = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for a record of each run; what is recorded there is not run again."),
]


def compare(
    context: typer.Context,
    model: flags.Model,
    methods: Methods = None,
    patterns: Patterns = None,
    seeds: Seeds = None,
    recipe: File = None,
    set_: flags.Set = None,
    calibration: flags.Calibration = None,
    nsamples: flags.NSamples = None,
    seqlen: flags.SeqLen = None,
    text: Text = None,
    text_field: TextField = None,
    protocol: Scored = None,
    eval_seqlen: EvalSeqLen = None,
    max_windows: MaxWindows = None,
    output: Records = None,
    format_: Annotated[Format, typer.Option("--format", help="Of the table.")] = Format.text,
    device: flags.Device = "auto",
    dtype: flags.DTypeFlag = DType.auto,
    json: flags.Json = False,
) -> None:
    """Prune a model by several methods, patterns and seeds; compare the perplexities. Exit code 2 if a run fails."""
    from eggs_ptp.cli.terminal import Progress, line, print_json
    from eggs_ptp.comparison import file, run
    from eggs_ptp.demo.builtin import DEMO

    grid = file.read_comparison(
        recipe,
        set_ or [],
        methods=methods.split(",") if methods is not None else None,
        patterns=patterns.split(",") if patterns is not None else None,
        seeds=seeds,
        calibration=calibration or (DEMO if model == DEMO else None),
        nsamples=nsamples,
        seqlen=seqlen,
    )
    with Progress("compare", quiet=json) as progress:

        def tell(done: int, total: int, what: str) -> None:
            if progress.is_bar:
                progress.count(done, total)
            elif not json:
                line(f"compare: {done}/{total} {what}", stderr=True)

        found = run.compare(
            grid,
            model,
            text=text,
            text_field=text_field,
            protocol=protocol.value if protocol else None,
            seqlen=eval_seqlen,
            max_windows=max_windows,
            device=device,
            dtype=dtype.value,
            records=output,
            progress=tell,
        )
    print_json({"command": shlex.join(context.obj), **found.to_dict()}) if json else _print(found, format_)
    raise typer.Exit(2 if found.failed else 0)


def _print(found: "Comparison", how: Format) -> None:
    from eggs_ptp.cli.terminal import line, table
    from eggs_ptp.comparison.table import comma_separated, markdown, text_rows

    if how is not Format.text:
        line(markdown(found) if how is Format.markdown else comma_separated(found))
        return
    if found.title:
        line(found.title, style="bold")
    table((*found.heads, *(f">{column}" for column in found.columns)), text_rows(found))
    dense = found.dense["evaluation"]
    line(
        f"perplexity, mean ± standard deviation over seeds (difference to dense); {dense['protocol']}, "
        f"{dense['windows']} windows, {dense['tokens']} tokens"
    )
    for remark in found.remarks:
        line(f"- {remark}")
