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
    masks: Annotated[
        Path | None,
        typer.Option("--masks", help="File to write: keep masks, one bit a weight (.safetensors).", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it is not empty.")] = False,
    json: flags.Json = False,
) -> None:
    """Write a pruned folder packed or dense, without a change to any value; or its masks, which prune --mask reads."""
    if (form is None) == (masks is None) or (form is None) != (output is None):
        raise typer.BadParameter("say what to write: --format packed -o DIR, --format dense -o DIR, or --masks FILE")
    if masks is not None:
        _masks(folder, masks, json)
    elif form is not None and output is not None:
        _folder(folder, form, output, pattern, overwrite, json)


def _masks(folder: Path, masks: Path, json: bool) -> None:
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import line, print_json

    count = api.export_masks(folder, masks)
    if json:
        print_json({"folder": str(folder), "masks": str(masks), "matrices": count})
    else:
        line(f"{count} masks written to {masks}")


def _folder(folder: Path, form: Form, output: Path, pattern: str | None, overwrite: bool, json: bool) -> None:
    from dataclasses import asdict

    from eggs_ptp.checkpoint.packed import export as export_folder
    from eggs_ptp.cli.terminal import bytes_text, line, print_json
    from eggs_ptp.core.pattern import parse_pattern
    from eggs_ptp.models.folder import find_folder

    asked = parse_pattern(pattern) if pattern else None
    done = export_folder(find_folder(str(folder)), output, form.value, pattern=asked, overwrite=overwrite)
    if json:
        print_json({"folder": str(folder), **asdict(done)})
        return
    share = f"{done.packed_bytes / done.dense_bytes:.1%} of the dense {bytes_text(done.dense_bytes)}"
    line(f"{done.matrices} matrices: {bytes_text(done.packed_bytes)} packed, {share}")
    line(f"Written to {output}, {form.value}")
    if form is Form.packed:
        line("Load it: import eggs_ptp, then transformers' from_pretrained")
