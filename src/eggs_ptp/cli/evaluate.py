"""`eggs evaluate`: perplexity."""

from enum import StrEnum
from typing import Annotated

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.flags import DType


class Protocol(StrEnum):
    """How text becomes windows."""

    packed = "packed"
    documents = "documents"


def evaluate(
    model: flags.Model,
    text: Annotated[
        str | None,
        typer.Option(help="Text, jsonl or Parquet file. Default: WikiText-2 test from the hub; for demo its own text."),
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(
            help="Windows of the joined text, or every document on its own. Default: documents for jsonl, else packed."
        ),
    ] = None,
    seqlen: Annotated[
        int | None, typer.Option(help="Tokens in a window. Default: 2048, or the model's context if shorter.")
    ] = None,
    max_windows: Annotated[
        int | None, typer.Option(min=1, help="Score so many windows or documents, from the start.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Where a row of the file has its text.")] = "text",
    device: flags.Device = "auto",
    dtype: flags.DTypeFlag = DType.auto,
    trust_remote_code: flags.TrustRemoteCode = False,
    json: flags.Json = False,
) -> None:
    """Measure the perplexity of a model, pruned or not."""
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import Progress, line, print_json, seconds_text

    with Progress("evaluate", quiet=json) as progress:
        found = api.evaluate(
            model,
            text,
            protocol=protocol.value if protocol else None,
            seqlen=seqlen,
            max_windows=max_windows,
            text_field=text_field,
            device=device,
            dtype=dtype.value,
            trust_remote_code=trust_remote_code,
            progress=progress.count if progress.is_bar else None,
        )
    if json:
        print_json({"model": model, "text": text, **found.to_dict()})
        return
    error = "" if found.standard_error is None else f" ± {found.value * found.standard_error:.3f} (standard error)"
    line(f"perplexity {found.value:.3f}{error}, {found.nll:.4f} nats a token")
    windows = f"{found.windows} windows of {found.seqlen} tokens, packed without overlap"
    documents = f"{found.windows} documents on their own, {found.truncated} cut at {found.seqlen} tokens"
    which = windows if found.protocol == "packed" else documents
    line(f"{found.protocol}: {which}; {found.tokens} tokens predicted in {seconds_text(found.seconds)}")
