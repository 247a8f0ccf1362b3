"""`eggs report`: runs and their records as one page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.report.report import Report


Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR", help="Pruned folders, dense or packed.", show_default=False)
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Page to write (.html).", show_default=False)]
Records = Annotated[
    list[Path] | None,
    typer.Option(
        help="A record of evaluate, compare, bench, diagnose, generate or demo (JSON), or a folder of them. May be "
        "repeated. Those in a DIR, or next to it as DIR.*.json, are found without.",
        show_default=False,
    ),
]
Markdown = Annotated[Path | None, typer.Option(help="File to write: Markdown for a model card.", show_default=False)]
Plots = Annotated[Path | None, typer.Option(help="Folder to write: each picture as .svg and .png.", show_default=False)]
Matrix = Annotated[
    list[str] | None,
    typer.Option(
        help="Draw the pattern of the matrices of this name or glob. May be repeated. Default: those with the highest "
        "and the lowest output error.",
        show_default=False,
    ),
]
AllBlocks = Annotated[
    bool, typer.Option("--all-blocks", help="Count the degrees of every block of a large model, not of some.")
]


def report(
    folders: Folders,
    output: Output,
    records: Records = None,
    markdown: Markdown = None,
    plots: Plots = None,
    matrix: Matrix = None,
    all_blocks: AllBlocks = False,
    json: flags.Json = False,
) -> None:
    """Show what runs came to: quality, layers, connections and speed, on one page that needs no network."""
    import time

    start = time.perf_counter()
    for path in (output, *([markdown] if markdown else [])):
        if not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"{path}: there is no such folder to write to")
    from eggs_ptp.cli.terminal import Progress, print_json
    from eggs_ptp.core.whole_file import write_whole
    from eggs_ptp.report.page import html
    from eggs_ptp.report.page import markdown as card
    from eggs_ptp.report.report import make_report

    with Progress("report", quiet=json) as progress:
        found = make_report(
            folders,
            records or (),
            matrices=matrix or (),
            all_blocks=all_blocks,
            progress=progress.count if progress.is_bar else None,
        )
    page = html(found)
    write_whole(output, page)
    if markdown is not None:
        write_whole(markdown, card(found))
    files = [path for picture in found.pictures for path in picture.write(plots)] if plots is not None else []
    seconds = time.perf_counter() - start
    if json:
        print_json(
            {
                "output": str(output),
                "bytes": len(page.encode()),
                "seconds": seconds,
                "runs": [{"folder": str(run.folder), "label": run.label, "model": run.model} for run in found.runs],
                "skipped": [{"path": str(each.path), "reason": each.reason} for each in found.skipped],
                "plots": [str(path) for path in files],
            }
        )
    else:
        _print(found, output, len(page.encode()), seconds)


def _print(found: "Report", output: Path, size: int, seconds: float) -> None:
    from eggs_ptp.cli.terminal import line, seconds_text

    for each in found.skipped:
        line(f"eggs: left out {each.path}: {each.reason}", stderr=True)
    if len(found.groups) > 1:
        models = ", ".join(group.model for group, _ in found.groups)
        line(f"eggs: runs of different models are not compared: {models}", stderr=True)
    runs = "1 run" if len(found.runs) == 1 else f"{len(found.runs)} runs"
    line(f"{output}: {runs}, {size / 1e6:.2f} MB, in {seconds_text(seconds)}")
