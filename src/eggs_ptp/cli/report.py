"""`eggs report`: pruned folders and their records as one page."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.report.report import Report


Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="DIR", help="Pruned folders, dense or packed, or a folder of compare -o.", show_default=False
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Page to write (.html).", show_default=False)]
Records = Annotated[
    list[Path] | None,
    typer.Option(
        help="A JSON record of evaluate, compare, bench, diagnose, generate or demo, or a folder of records. May be "
        "repeated. Records in a DIR, or next to it as DIR.*.json, are found without this option.",
        show_default=False,
    ),
]
Markdown = Annotated[Path | None, typer.Option(help="File to write: Markdown for a model card.", show_default=False)]
Plots = Annotated[Path | None, typer.Option(help="Folder to write: each plot as .svg and .png.", show_default=False)]
Matrix = Annotated[
    list[str] | None,
    typer.Option(
        help="Show the mask of matrices with this name or glob. May be repeated. Default: none.",
        show_default=False,
    ),
]
AllBlocks = Annotated[
    bool, typer.Option("--all-blocks", help="Read the masks of all blocks of a large model, not only of some.")
]
Texts = Annotated[
    bool,
    typer.Option(
        "--texts/--no-texts",
        help="Where no record has a generated text: let the dense model and the runs continue a prompt, if they are on "
        "this machine, not packed, and have at most 500 million parameters.",
    ),
]


def report(
    folders: Folders,
    output: Output,
    records: Records = None,
    markdown: Markdown = None,
    plots: Plots = None,
    matrix: Matrix = None,
    all_blocks: AllBlocks = False,
    texts: Texts = True,
    json: flags.Json = False,
) -> None:
    """Write quality, output errors, connectivity and speed of runs to one page that needs no network."""
    start = time.perf_counter()
    for path in (output, *([markdown] if markdown else [])):
        if not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"{path}: there is no such folder to write to")
    from eggs_ptp.cli.report_texts import write_texts
    from eggs_ptp.cli.terminal import Progress, print_json
    from eggs_ptp.core.atomic_write import write_text_atomically
    from eggs_ptp.report.page import render_html, render_markdown
    from eggs_ptp.report.report import make_report

    with Progress("report", quiet=json) as progress:
        made = make_report(
            folders,
            records or (),
            matrices=matrix or (),
            all_blocks=all_blocks,
            write_texts=write_texts if texts else lambda _: (),
            progress=progress.count if progress.is_bar else None,
        )
    page = render_html(made)
    write_text_atomically(output, page)
    if markdown is not None:
        write_text_atomically(markdown, render_markdown(made))
    files = [path for picture in made.pictures for path in picture.write(plots)] if plots is not None else []
    page_bytes = len(page.encode())
    seconds = time.perf_counter() - start
    if json:
        print_json(
            {
                "output": str(output),
                "bytes": page_bytes,
                "seconds": seconds,
                "runs": [{"folder": str(run.folder), "label": run.label, "model": run.model} for run in made.runs],
                "skipped": [{"path": str(skipped.path), "reason": skipped.reason} for skipped in made.skipped],
                "plots": [str(path) for path in files],
            }
        )
    else:
        print_result(made, output, page_bytes, seconds)


def print_result(report: "Report", output: Path, page_bytes: int, seconds: float) -> None:
    """Print what was written, and on stderr what was left out and why."""
    from eggs_ptp.cli.terminal import format_bytes, format_duration, print_line

    for skipped in report.skipped:
        print_line(f"eggs: skipped {skipped.path}: {skipped.reason}", stderr=True)
    if len(report.groups) > 1:
        models = ", ".join(group.model for group, _ in report.groups)
        print_line(f"eggs: runs of different models are not compared: {models}", stderr=True)
    count = len(report.runs)
    runs = "1 run" if count == 1 else f"{count} runs"
    print_line(f"{output}: {runs}, {format_bytes(page_bytes)}, in {format_duration(seconds)}")
