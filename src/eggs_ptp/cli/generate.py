"""`eggs generate`: a sample of a model's text."""

from typing import Annotated

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.flags import DType


def generate(
    model: flags.Model,
    prompt: Annotated[str, typer.Option(help="The text to go on from.", show_default=False)],
    tokens: Annotated[int, typer.Option(min=1, help="New tokens at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.8,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    device: flags.Device = "auto",
    dtype: flags.DTypeFlag = DType.auto,
    trust_remote_code: flags.TrustRemoteCode = False,
    json: flags.Json = False,
) -> None:
    """Let a model go on from a prompt."""
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import line, print_json
    from eggs_ptp.evaluation.generate import sample_text

    network, tokenizer = api.load(model, device=device, dtype=dtype.value, trust_remote_code=trust_remote_code)
    text = sample_text(network, tokenizer, prompt, tokens=tokens, temperature=temperature, seed=seed)
    if json:
        print_json({"model": model, "prompt": prompt, "text": text, "temperature": temperature, "seed": seed})
    else:
        line(text)
