"""`eggs export`: write a pruned folder packed, a packed one dense, a folded one unfolded, or the masks only."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from eggs_ptp.cli import flags


class Form(StrEnum):
    """Formats of a folder."""

    dense = "dense"
    packed = "packed"


class Channels(StrEnum):
    """Channel orders of a folder."""

    base = "base"


class Values(StrEnum):
    """Integer types of quantised values."""

    int8 = "int8"
    int4 = "int4"


_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A pruned folder.", show_default=False)]
_Format = Annotated[
    Form | None,
    typer.Option("--format", help="Format to write: packed (N:M without its zeros) or dense.", show_default=False),
]
_Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.", show_default=False)]
_Pattern = Annotated[
    str | None,
    typer.Option(help="N:M pattern of all block linears, for a folder without eggs.json.", show_default=False),
]
_Values = Annotated[
    Values | None,
    typer.Option(
        help="Quantise the kept values when packing: int8 with one scale per row, or int4 with one scale per 64 "
        "values. Values are rounded to the nearest; those of a model pruned with +gptq are on the quantisation grid "
        "already.",
        show_default="those of the folder",
    ),
]
_Permutation = Annotated[
    Channels | None,
    typer.Option(
        "--permutation",
        help="base: undo the folded permutations and write the folder dense, in the channel order of the model that it "
        "was pruned from. LoRA adapters and merges made for that model fit; matrices are N:M in a permutation only.",
        show_default=False,
    ),
]
_Masks = Annotated[
    Path | None,
    typer.Option("--masks", help="File to write: masks, one bit per weight (.safetensors).", show_default=False),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it is not empty.")]


def export(
    folder: _Folder,
    form: _Format = None,
    output: _Output = None,
    pattern: _Pattern = None,
    values: _Values = None,
    permutation: _Permutation = None,
    masks: _Masks = None,
    overwrite: _Overwrite = False,
    json: flags.Json = False,
) -> None:
    """Write a pruned folder packed or dense, in the base model's channels, or its masks, which prune --mask reads.

    Values do not change, unless packing quantises them.
    """
    if values is not None and form is not Form.packed and (form or masks or permutation):
        raise typer.BadParameter("--values quantises while packing, so it needs --format packed")
    if permutation is not None:
        _check_base_export(form, output, pattern, masks)
    elif (form is None) == (masks is None) or (form is None) != (output is None):
        raise typer.BadParameter(
            "expected one thing to write: --format packed -o DIR, --format dense -o DIR, --permutation base -o DIR, or "
            "--masks FILE"
        )
    if masks is not None:
        _export_masks(folder, masks, json)
    elif permutation is not None and output is not None:
        _export_base(folder, output, overwrite, json)
    elif form is not None and output is not None:
        _export_folder(folder, form, output, pattern, values, overwrite, json)


def _check_base_export(form: Form | None, output: Path | None, pattern: str | None, masks: Path | None) -> None:
    if form is Form.packed:
        raise typer.BadParameter(
            "--permutation base writes a dense folder; pack that one: eggs export OUT --format packed -o PACKED"
        )
    if output is None or masks is not None or pattern is not None:
        raise typer.BadParameter("expected --permutation base -o DIR, without --masks and --pattern")


def _export_base(folder: Path, output: Path, overwrite: bool, json: bool) -> None:
    from dataclasses import asdict

    from eggs_ptp import api
    from eggs_ptp.cli.terminal import print_json, print_line

    exported = api.export_base(folder, output, overwrite=overwrite)
    if json:
        print_json({"folder": str(folder), **asdict(exported)})
        return
    print_line(f"Written to {output}, dense, in the channel order of {exported.source}")
    counts = f"{exported.permuted} of {exported.matrices} matrices"
    print_line(f"{counts} are N:M only in permutations that it stores, not as written;")
    print_line("eggs verify and eggs export --format packed read them")


def _export_masks(folder: Path, masks: Path, json: bool) -> None:
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import print_json, print_line

    count = api.export_masks(folder, masks)
    if json:
        print_json({"folder": str(folder), "masks": str(masks), "matrices": count})
    else:
        print_line(f"{count} masks written to {masks}")


def _export_folder(
    folder: Path, form: Form, output: Path, pattern: str | None, values: Values | None, overwrite: bool, json: bool
) -> None:
    from dataclasses import asdict

    from eggs_ptp.checkpoint.packed import export as write_folder
    from eggs_ptp.cli.terminal import format_bytes, print_json, print_line
    from eggs_ptp.core.pattern import parse_pattern
    from eggs_ptp.models.folder import find_folder

    exported = write_folder(
        find_folder(str(folder)),
        output,
        form.value,
        pattern=parse_pattern(pattern) if pattern else None,
        values=None if values is None else values.value,
        overwrite=overwrite,
    )
    if json:
        print_json({"folder": str(folder), **asdict(exported)})
        return
    share = f"{exported.packed_bytes / exported.dense_bytes:.1%} of the dense {format_bytes(exported.dense_bytes)}"
    print_line(f"{exported.matrices} matrices: {format_bytes(exported.packed_bytes)} packed, {share}")
    if values is not None:
        unchanged = exported.matrices - exported.rounded
        print_line(
            f"{values.value} values: {unchanged} matrices were on this quantisation grid already, {exported.rounded} "
            "were rounded to the nearest"
        )
    print_line(f"Written to {output}, {form.value}")
    if form is Form.packed:
        print_line("Load it: import eggs_ptp, then transformers' from_pretrained")
