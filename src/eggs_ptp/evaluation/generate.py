"""Sampling text from a model."""

from typing import Any

import torch

from eggs_ptp.errors import CalibrationError


def sample_text(
    model: Any, tokenizer: Any, prompt: str, *, tokens: int = 100, temperature: float = 0.8, seed: int = 0
) -> str:
    """Sample a continuation of a prompt, x_t ~ softmax(logits / temperature) over the whole vocabulary.

    The same arguments give the same text; torch's global random state is not changed.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: The text to continue.
        tokens: Most tokens to sample.
        temperature: Temperature; 0 takes the most likely token.
        seed: Seed of the random numbers.

    Returns:
        Prompt and continuation, decoded together.

    Raises:
        CalibrationError: The prompt is empty, the temperature negative, or the text longer than the model's context.
    """
    ids = torch.tensor([tokenizer(prompt, verbose=False)["input_ids"]], dtype=torch.long, device=model.device)
    context = getattr(model.config, "max_position_embeddings", None)
    if not ids.numel():
        raise CalibrationError("the prompt is empty and the tokenizer has no begin token; give --prompt some text")
    if temperature < 0:
        raise CalibrationError(f"temperature: expected 0 (the most likely token) or more, got {temperature:g}")
    if context and ids.shape[1] + tokens > context:
        raise CalibrationError(
            f"{ids.shape[1]} prompt tokens and {tokens} new ones exceed the model's context of {context}; "
            "ask for fewer tokens"
        )
    # None overrides the checkpoint's own generation config, which could change the distribution sampled from.
    options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if temperature:
        options.update(do_sample=True, temperature=temperature, top_k=0)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **options,
        )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))
