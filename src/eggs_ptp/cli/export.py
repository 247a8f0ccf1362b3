"""`eggs export`: a pruned folder packed, a packed one dense, or the masks alone."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from eggs_ptp.cli import flags


class Form(StrEnum):
    """Forms of a folder."""

    dense = "dense"
    packed = "packed"


class Values(StrEnum):
    """Kinds of quantised values."""

    int8 = "int8"
    int4 = "int4"


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A pruned folder.", show_default=False)],
    form: Annotated[
        Form | None,
        typer.Option("--format", help="Form to write: packed (N:M without its zeros) or dense.", show_default=False),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.", show_default=False)] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="N:M that all block linears have, for a folder without eggs.json.", show_default=False),
    ] = None,
    values: Annotated[
        Values | None,
        typer.Option(
            help="Quantise kept values when packing: int8, a scale for each row, or int4, one for 64 values. Rounds to "
            "the nearest; prune with +gptq to have them on the grid already.",
            show_default="those of the folder",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option("--masks", help="File to write: keep masks, one bit a weight (.safetensors).", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it is not empty.")] = False,
    json: flags.Json = False,
) -> None:
    """Write a pruned folder packed or dense; or its masks, which prune --mask reads.

    No value changes on the way, unless packing quantises them.
    """
    if (form is None) == (masks is None) or (form is None) != (output is None):
        raise typer.BadParameter("say what to write: --format packed -o DIR, --format dense -o DIR, or --masks FILE")
    if values is not None and form is not Form.packed:
        raise typer.BadParameter("--values quantises while packing, so it needs --format packed")
    if masks is not None:
        _masks(folder, masks, json)
    elif form is not None and output is not None:
        _folder(folder, form, output, pattern, values, overwrite, json)


def _masks(folder: Path, masks: Path, json: bool) -> None:
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import line, print_json

    count = api.export_masks(folder, masks)
    if json:
        print_json({"folder": str(folder), "masks": str(masks), "matrices": count})
    else:
        line(f"{count} masks written to {masks}")


def _folder(
    folder: Path, form: Form, output: Path, pattern: str | None, values: Values | None, overwrite: bool, json: bool
) -> None:
    from dataclasses import asdict

    from eggs_ptp.checkpoint.packed import export as export_folder
    from eggs_ptp.cli.terminal import bytes_text, line, print_json
    from eggs_ptp.core.pattern import parse_pattern
    from eggs_ptp.models.folder import find_folder

    asked = parse_pattern(pattern) if pattern else None
    kind = None if values is None else values.value
    done = export_folder(find_folder(str(folder)), output, form.value, pattern=asked, values=kind, overwrite=overwrite)
    if json:
        print_json({"folder": str(folder), **asdict(done)})
        return
    share = f"{done.packed_bytes / done.dense_bytes:.1%} of the dense {bytes_text(done.dense_bytes)}"
    line(f"{done.matrices} matrices: {bytes_text(done.packed_bytes)} packed, {share}")
    if kind is not None:
        kept = done.matrices - done.rounded
        line(f"Values are {kind}: {kept} matrices had these already, {done.rounded} were rounded to the nearest")
    line(f"Written to {output}, {form.value}")
    if form is Form.packed:
        line("Load it: import eggs_ptp, then transformers' from_pretrained")
