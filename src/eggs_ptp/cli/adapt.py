"""`eggs adapt`: permute a LoRA adapter of the base model for a pruned folder with folded permutations."""

from pathlib import Path
from typing import Annotated

import typer

from eggs_ptp.cli import flags

_Adapter = Annotated[
    Path,
    typer.Argument(
        metavar="ADAPTER", help="A LoRA adapter, as peft saves it: a folder or a hub name.", show_default=False
    ),
]
_To = Annotated[Path, typer.Option("--to", metavar="DIR", help="The pruned folder to fit.", show_default=False)]
_Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it is not empty.")]


def adapt(
    adapter: _Adapter,
    to: _To,
    output: _Output,
    overwrite: _Overwrite = False,
    json: flags.Json = False,
) -> None:
    """Permute a LoRA adapter made for a model to fit a folder pruned from it, whose channels are permuted.

    It does on that folder what it does on the same pruned weights in the model's own channel order.
    """
    from dataclasses import asdict

    from eggs_ptp import api
    from eggs_ptp.cli.terminal import print_json, print_line

    adapted = api.adapt(adapter, to, output, overwrite=overwrite)
    if json:
        print_json(asdict(adapted))
        return
    if adapted.folded:
        print_line(f"{adapted.permuted} of {adapted.tensors} tensors permuted to the channels of {to}")
    else:
        print_line(
            f"Nothing to permute: no permutation is folded into {to}, so {adapter} fits it as it is; its "
            f"{adapted.tensors} tensors are unchanged"
        )
    print_line(f"The adapter was made for {adapted.made_for or 'a model it does not name'}")
    print_line(f"The folder was pruned from {adapted.pruned_from}; the two must be the same model")
    print_line(f"Written to {output}; load it with peft on {to} only")
