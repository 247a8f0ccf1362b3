"""`eggs generate`: a sample of a model's text, beside that of another model."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.evaluation.generate import Sample

_Prompt = Annotated[
    str, typer.Option(help="A message to answer, or without a chat a text to continue.", show_default=False)
]
_Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Take the prompt as a user's message, in the tokenizer's chat template. Default: where there is a "
        "template.",
        show_default=False,
    ),
]
_Against = Annotated[
    str | None,
    typer.Option(
        help="A second model, such as the dense one: its text from the same prompt and seed.", show_default=False
    ),
]
_Tokens = Annotated[int, typer.Option(min=1, help="Maximal number of new tokens.")]
_Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0: greedy decoding.")]
_Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]


@flags.with_flags
def generate(
    model: flags.Model,
    *,
    prompt: _Prompt,
    chat: _Chat = None,
    against: _Against = None,
    tokens: _Tokens = 100,
    temperature: _Temperature = 0.8,
    seed: _Seed = 0,
    run: flags.DeviceFlags,
    trust_remote_code: flags.TrustRemoteCode = False,
    json: flags.Json = False,
) -> None:
    """Generate text from a prompt, also with two models."""
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import print_json, print_line
    from eggs_ptp.evaluation.generate import has_chat_template, prompt_ids, sample

    names = [model] if against is None else [model, against]
    if against is not None:
        api.find(against)  # refused before the first model writes
    texts = []
    is_chat = bool(chat)
    for name in names:  # one model in memory at a time
        network, tokenizer = api.load(name, trust_remote_code=trust_remote_code, **run.arguments())
        if name is model:
            is_chat = has_chat_template(tokenizer) if chat is None else chat
        ids = prompt_ids(tokenizer, prompt, chat=is_chat)
        texts.append(sample(network, tokenizer, ids, tokens=tokens, temperature=temperature, seed=seed))
        del network
    if json:
        second = {"against": {"model": against, **_plain(prompt, texts[1], is_chat)}} if len(texts) > 1 else {}
        settings = {"prompt": prompt, "chat": is_chat, "temperature": temperature, "seed": seed}
        print_json({"model": model, **settings, **_plain(prompt, texts[0], is_chat), **second})
        return
    for name, text in zip(names, texts, strict=True):
        if len(names) > 1:
            print_line(f"--- {name}")
        print_line(text.text if is_chat else prompt + text.text)
        for remark in remarks(text, is_chat=is_chat):
            print_line(f"({remark})", stderr=True)


def remarks(text: "Sample", *, is_chat: bool) -> list[str]:
    """Return what a reader of a sampled text should know: that the model ended at once, and special tokens inside.

    Args:
        text: The text.
        is_chat: Whether it answers a message in a chat template.
    """
    found = []
    if text.ended_at_once:
        other = (
            "--no-chat, for a model that was not made for chats" if is_chat else "a longer prompt, or another --seed"
        )
        found.append(f"the model ended at once: its first token was {text.ended_by}; try {other}")
    if text.special:
        found.append(f"special tokens in the text: {' '.join(dict.fromkeys(text.special))}")
    return found


def _plain(prompt: str, text: "Sample", is_chat: bool) -> dict[str, Any]:
    """Return a sampled text for JSON; `text` has the prompt in front where the model continues it."""
    return {
        "text": text.text if is_chat else prompt + text.text,
        "tokens": text.tokens,
        "ended_by": text.ended_by,
        "special_tokens": list(text.special),
    }
