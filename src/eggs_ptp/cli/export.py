"""`eggs export`: parts of a pruned folder in other forms."""

from pathlib import Path
from typing import Annotated

import typer

from eggs_ptp.cli import flags


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A pruned folder.", show_default=False)],
    masks: Annotated[Path, typer.Option("--masks", help="File to write: keep masks, one bit a weight (.safetensors).")],
    json: flags.Json = False,
) -> None:
    """Write the masks of a pruned folder; prune --mask reads them."""
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import line, print_json

    count = api.export_masks(folder, masks)
    if json:
        print_json({"folder": str(folder), "masks": str(masks), "matrices": count})
    else:
        line(f"{count} masks written to {masks}")
