"""StableLM: the Llama shape with LayerNorm, part of each head rotated, and attention and MLP in line or in parallel."""

from dataclasses import replace

from eggs_ptp.models.family import norms
from eggs_ptp.models.llama import LLAMA

STABLELM = replace(
    LLAMA,
    model_type="stablelm",
    inside={
        **norms("input_layernorm", "post_attention_layernorm", bias=True),
        "self_attn.q_layernorm.norms.*.weight": (None,),  # one for each head, along what rotation fixes
        "self_attn.k_layernorm.norms.*.weight": (None,),
        "self_attn.rotary_emb.inv_freq": (None,),
    },
    outside={**LLAMA.outside, **norms("model.norm", bias=True)},
)
