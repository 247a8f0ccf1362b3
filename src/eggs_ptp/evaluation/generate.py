"""Sampling text from a model."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.calibration.tokens import token_ids
from eggs_ptp.errors import CalibrationError


@dataclass(frozen=True)
class Sample:
    """A sampled continuation.

    Attributes:
        text: The continuation, without the prompt and without the token that ended it; special tokens inside it are
            written as the tokenizer writes them, such as `<|im_start|>`.
        tokens: Number of sampled tokens, the one that ended the text included.
        ended_by: The token with which the model ended the text; None if it wrote as many tokens as it was allowed to.
        special: The special tokens inside the text, in their order.
    """

    text: str
    tokens: int
    ended_by: str | None
    special: tuple[str, ...]

    @property
    def ended_at_once(self) -> bool:
        """Whether the model ended the text before it had written anything."""
        return self.ended_by is not None and self.tokens == 1


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer has a template that renders chats."""
    return bool(getattr(tokenizer, "chat_template", None))


def prompt_ids(tokenizer: Any, prompt: str, *, chat: bool) -> list[int]:
    """Return the tokens of a prompt.

    Args:
        tokenizer: The tokenizer.
        prompt: The text; one that has the begin token itself gets no second one.
        chat: Whether it is a user's message, which the chat template renders and opens an answer to; the template
            writes all special tokens itself. Otherwise it is text that the model continues.

    Raises:
        CalibrationError: The prompt is empty, or there is no chat template or it fails.
    """
    if not chat:
        ids = token_ids(prompt, tokenizer)
        if not ids:
            raise CalibrationError("the prompt is empty and the tokenizer has no begin token; give --prompt some text")
        return ids
    if not has_chat_template(tokenizer):
        raise CalibrationError(
            "--chat: expected a tokenizer with a chat template, got one without; leave --chat out and give a text to "
            "continue"
        )
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates are programs from the model's folder and may raise anything
        reason = str(error).partition("\n")[0]
        raise CalibrationError(
            f"--chat: the tokenizer's chat template fails ({reason}); give --no-chat and a text to continue"
        ) from None
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def sample(
    model: Any, tokenizer: Any, ids: list[int], *, tokens: int = 100, temperature: float = 0.8, seed: int = 0
) -> Sample:
    """Sample a continuation of tokens, x_t ~ softmax(logits / temperature) over the whole vocabulary.

    The same arguments give the same text; torch's global random state is not changed.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        ids: The tokens to continue, see `prompt_ids`.
        tokens: Most tokens to sample.
        temperature: Temperature; 0 takes the most likely token.
        seed: Seed of the random numbers.

    Raises:
        CalibrationError: The temperature is negative, or the text longer than the model's context.
    """
    new = _sampled_ids(model, tokenizer, ids, tokens, temperature, seed)[len(ids) :].tolist()
    ends = model.generation_config.eos_token_id
    ended = bool(new) and new[-1] in (ends if isinstance(ends, list) else [ends])
    inner = new[:-1] if ended else new
    special_ids = set(getattr(tokenizer, "all_special_ids", ()))
    before = tokenizer.decode(ids, skip_special_tokens=False)
    whole = tokenizer.decode([*ids, *inner], skip_special_tokens=False)
    # Decoded alone, a continuation can lose its first space.
    text = (
        whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(inner, skip_special_tokens=False)
    )
    return Sample(
        text=str(text),
        tokens=len(new),
        ended_by=str(tokenizer.decode(new[-1:], skip_special_tokens=False)) if ended else None,
        special=tuple(
            str(tokenizer.decode([token], skip_special_tokens=False)) for token in inner if token in special_ids
        ),
    )


def sample_text(
    model: Any, tokenizer: Any, prompt: str, *, tokens: int = 100, temperature: float = 0.8, seed: int = 0
) -> str:
    """Sample a continuation of a prompt as `sample` does, and return both as one text without special tokens.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: The text to continue.
        tokens: Most tokens to sample.
        temperature: Temperature; 0 takes the most likely token.
        seed: Seed of the random numbers.

    Raises:
        CalibrationError: The prompt is empty, the temperature negative, or the text longer than the model's context.
    """
    ids = prompt_ids(tokenizer, prompt, chat=False)
    output = _sampled_ids(model, tokenizer, ids, tokens, temperature, seed)
    return str(tokenizer.decode(output, skip_special_tokens=True))


def _sampled_ids(model: Any, tokenizer: Any, ids: list[int], tokens: int, temperature: float, seed: int) -> Tensor:
    """Return the given tokens and their continuation."""
    if temperature < 0:
        raise CalibrationError(f"temperature: expected 0 (the most likely token) or more, got {temperature:g}")
    context = getattr(model.config, "max_position_embeddings", None)
    if context and len(ids) + tokens > context:
        raise CalibrationError(
            f"{len(ids)} prompt tokens and {tokens} new ones exceed the model's context of {context}; "
            "ask for fewer tokens"
        )
    inputs = torch.tensor([ids], dtype=torch.long, device=model.device)
    # None overrides the checkpoint's own generation config, which could change the distribution sampled from.
    options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if temperature:
        options.update(do_sample=True, temperature=temperature, top_k=0)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        output: Tensor = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **options,
        )
    return output[0]
