"""`eggs compare`: methods x patterns x seeds on one model."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.evaluate import Protocol
from eggs_ptp.cli.flags import DType

if TYPE_CHECKING:
    from eggs_ptp.comparison.run import Comparison


class Format(StrEnum):
    """How the table is printed."""

    text = "text"
    markdown = "markdown"
    csv = "csv"


def compare(
    model: flags.Model,
    methods: Annotated[
        str | None, typer.Option(help="Names, with commas between them; a+b joins steps.", show_default=False)
    ] = None,
    patterns: Annotated[
        str | None, typer.Option(help="Patterns, with commas between them. Default: the recipe's, or 2:4.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Seeds 0, 1, ... for methods that a seed can change. Default: the recipe's, or 3."),
    ] = None,
    calibration: flags.Calibration = None,
    nsamples: flags.NSamples = None,
    seqlen: flags.SeqLen = None,
    text: Annotated[str | None, typer.Option(help="Evaluation text, as for eggs evaluate.")] = None,
    protocol: Annotated[Protocol | None, typer.Option(help="As for eggs evaluate.")] = None,
    max_windows: Annotated[int | None, typer.Option(min=1, help="As for eggs evaluate.")] = None,
    recipe: flags.RecipeFile = None,
    set_: flags.Set = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for one record a run; runs recorded there are not done again."),
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="Of the table.")] = Format.text,
    device: flags.Device = "auto",
    dtype: flags.DTypeFlag = DType.auto,
    json: flags.Json = False,
) -> None:
    """Prune a model by several methods, patterns and seeds, and compare the perplexities."""
    from eggs_ptp.cli.terminal import Progress, line, print_json
    from eggs_ptp.comparison.file import read_comparison
    from eggs_ptp.comparison.run import compare as run

    grid = read_comparison(
        recipe,
        set_ or [],
        methods=methods.split(",") if methods else None,
        patterns=patterns.split(",") if patterns else None,
        seeds=seeds,
        calibration=calibration,
        nsamples=nsamples,
        seqlen=seqlen,
    )
    with Progress("compare", quiet=json) as progress:
        found = run(
            grid,
            model,
            text=text,
            protocol=protocol.value if protocol else None,
            max_windows=max_windows,
            device=device,
            dtype=dtype.value,
            records=output,
            progress=lambda cell, done, total, _known: progress.count(done, total),
        )
    if json:
        print_json(found.to_dict())
        return
    _print(found, format_)
    for (method, pattern), reason in {**found.left_out, **found.failed}.items():
        line(f"- {method} at {pattern}: {reason}", stderr=True)


def _print(found: "Comparison", how: Format) -> None:
    from eggs_ptp.cli.terminal import line, table
    from eggs_ptp.comparison.table import comma_separated, markdown, tabulate

    grid = tabulate(found.records, found.dense["value"])
    if how is Format.markdown:
        line(markdown(grid))
    elif how is Format.csv:
        line(comma_separated(grid))
    else:
        rows = [["dense", *[f"{grid.dense:.2f}"] * len(grid.patterns)]]
        rows += [[method, *(grid.cell(method, pattern) for pattern in grid.patterns)] for method in grid.methods]
        table(("method", *(f">{pattern}" for pattern in grid.patterns)), rows)
        dense = found.dense
        line(
            f"perplexity, mean ± standard deviation over seeds (difference to dense); {dense['protocol']}, "
            f"{dense['windows']} windows, {dense['tokens']} tokens"
        )
