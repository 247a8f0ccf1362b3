"""`eggs generate`: a sample of a model's text."""

from typing import Annotated

import typer

from eggs_ptp.cli import flags

_Prompt = Annotated[str, typer.Option(help="Text that the model continues.", show_default=False)]
_Tokens = Annotated[int, typer.Option(min=1, help="Maximal number of new tokens.")]
_Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0: greedy decoding.")]
_Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]


@flags.with_flags
def generate(
    model: flags.Model,
    *,
    prompt: _Prompt,
    tokens: _Tokens = 100,
    temperature: _Temperature = 0.8,
    seed: _Seed = 0,
    run: flags.DeviceFlags,
    trust_remote_code: flags.TrustRemoteCode = False,
    json: flags.Json = False,
) -> None:
    """Generate text from a prompt."""
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import print_json, print_line
    from eggs_ptp.evaluation.generate import sample_text

    network, tokenizer = api.load(model, trust_remote_code=trust_remote_code, **run.arguments())
    text = sample_text(network, tokenizer, prompt, tokens=tokens, temperature=temperature, seed=seed)
    if json:
        print_json({"model": model, "prompt": prompt, "text": text, "temperature": temperature, "seed": seed})
    else:
        print_line(text)
