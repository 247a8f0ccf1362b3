"""Gemma 2 and 3, and OLMo 2: the Llama shape with norms behind attention and MLP. A norm by 1 + w is one by w."""

from dataclasses import replace

from eggs_ptp.models.family import Linear, norms
from eggs_ptp.models.llama import LLAMA


def _normed(linear: Linear) -> Linear:
    return replace(linear, adds=linear.writes != "residual")


_POST_NORMED = replace(
    LLAMA,
    linears=tuple(_normed(linear) for linear in LLAMA.linears),
    inside={
        **LLAMA.inside,
        **norms("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    },
)

GEMMAS = tuple(replace(_POST_NORMED, model_type=model_type) for model_type in ("gemma2", "gemma3_text"))
OLMO2 = replace(_POST_NORMED, model_type="olmo2")
