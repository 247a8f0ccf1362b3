"""Families of the dense architectures: Llama and its relatives, Gemma, OLMo 2, Phi-3, StableLM, OPT and the GPTs.

Mixtures of experts are in `moe.py`. Each family is data, see `family.py`; `registry.py` maps model types to families.
"""

from dataclasses import replace
from typing import Any

from eggs_ptp.models.family import Family, Linear, PermutationScope, norms

_SPACES = {"attention_in": "residual", "heads": "heads", "mlp_in": "residual", "mlp": "mlp"}
_SCOPE: dict[str, PermutationScope] = {"residual": "model", "heads": "head", "mlp": "block"}


def _with_post_norms(linears: tuple[Linear, ...]) -> tuple[Linear, ...]:
    """Return linears whose outputs are normalised before they are added to the residual stream."""
    return tuple(replace(linear, adds=linear.output_space != "residual") for linear in linears)


# Llama: separate q, k, v, o and a gated MLP. Biases and norms of queries and keys make no difference.

ATTENTION = (
    Linear("self_attn.q_proj", input_activation="attention_in", role="attention"),
    Linear("self_attn.k_proj", input_activation="attention_in", role="attention"),
    Linear("self_attn.v_proj", input_activation="attention_in", role="attention", output_space="heads"),
    Linear("self_attn.o_proj", input_activation="heads", role="attention", output_space="residual"),
)
GATED_MLP = (
    Linear("mlp.gate_proj", input_activation="mlp_in", role="mlp", output_space="mlp"),
    Linear("mlp.up_proj", input_activation="mlp_in", role="mlp", output_space="mlp"),
    Linear("mlp.down_proj", input_activation="mlp", role="mlp", output_space="residual"),
)

LLAMA = Family(
    "llama",
    "model.layers",
    (*ATTENTION, *GATED_MLP),
    spaces=_SPACES,
    scope=_SCOPE,
    inside={
        **norms("input_layernorm", "post_attention_layernorm"),
        "self_attn.q_norm.weight": (None,),  # its channels are fixed by the rotary embedding
        "self_attn.k_norm.weight": (None,),
        "self_attn.rotary_emb.inv_freq": (None,),  # in old checkpoints
    },
    outside={
        "model.embed_tokens.weight": (None, "residual"),
        **norms("model.norm"),
        "lm_head.weight": (None, "residual"),
    },
)
LLAMA_SHAPED = tuple(replace(LLAMA, model_type=model_type) for model_type in ("llama", "mistral", "qwen2", "qwen3"))

# Gemma 2, Gemma 3 and OLMo 2: Llama with norms after attention and MLP. Gemma's norms multiply by 1 + w instead of w,
# which permutes in the same way.

_POST_NORMED = replace(
    LLAMA,
    linears=_with_post_norms(LLAMA.linears),
    inside={
        **LLAMA.inside,
        **norms("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    },
)
GEMMAS = tuple(replace(_POST_NORMED, model_type=model_type) for model_type in ("gemma2", "gemma3_text"))
OLMO2 = replace(_POST_NORMED, model_type="olmo2")

# Phi-3: Llama with q, k, v in one matrix, and gate and up in another.

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    linears=(
        Linear(
            "self_attn.qkv_proj", input_activation="attention_in", role="attention", output_space="heads", rows="qkv"
        ),
        Linear("self_attn.o_proj", input_activation="heads", role="attention", output_space="residual"),
        Linear("mlp.gate_up_proj", input_activation="mlp_in", role="mlp", output_space="mlp", rows="pair"),
        Linear("mlp.down_proj", input_activation="mlp", role="mlp", output_space="residual"),
    ),
)

# StableLM: Llama with LayerNorm and partial rotary embeddings; attention and MLP run in sequence or in parallel.

STABLELM = replace(
    LLAMA,
    model_type="stablelm",
    inside={
        **norms("input_layernorm", "post_attention_layernorm", bias=True),
        "self_attn.q_layernorm.norms.*.weight": (None,),  # one per head; its channels are fixed by the rotary embedding
        "self_attn.k_layernorm.norms.*.weight": (None,),
        "self_attn.rotary_emb.inv_freq": (None,),
    },
    outside={**LLAMA.outside, **norms("model.norm", bias=True)},
)

# OPT: learned positions, biases, a plain MLP, and norms before attention and MLP, or after them (OPT-350m).

_OPT_DECODER = "model.decoder"
OPT = Family(
    "opt",
    f"{_OPT_DECODER}.layers",
    (
        Linear("self_attn.q_proj", input_activation="attention_in", role="attention"),
        Linear("self_attn.k_proj", input_activation="attention_in", role="attention"),
        Linear("self_attn.v_proj", input_activation="attention_in", role="attention", output_space="heads"),
        Linear("self_attn.out_proj", input_activation="heads", role="attention", output_space="residual"),
        Linear("fc1", input_activation="mlp_in", role="mlp", output_space="mlp"),
        Linear("fc2", input_activation="mlp", role="mlp", output_space="residual"),
    ),
    spaces=_SPACES,
    scope=_SCOPE,
    inside=norms("self_attn_layer_norm", "final_layer_norm", bias=True),
    outside={
        f"{_OPT_DECODER}.embed_tokens.weight": (None, "residual"),
        f"{_OPT_DECODER}.embed_positions.weight": (None, "residual"),
        **norms(f"{_OPT_DECODER}.final_layer_norm", bias=True),
        "lm_head.weight": (None, "residual"),
    },
    grouped=False,
)


def opt_of(config: Any) -> Family:
    """Return the family of an OPT model: its norms may follow the linears, and its embeddings may be projected.

    Args:
        config: The model's config.
    """
    family = OPT
    if not config.do_layer_norm_before:
        family = replace(family, linears=_with_post_norms(OPT.linears))
    if config.word_embed_proj_dim != config.hidden_size:
        outside = {
            **OPT.outside,
            f"{_OPT_DECODER}.embed_tokens.weight": (None, None),
            f"{_OPT_DECODER}.project_in.weight": ("residual", None),
            f"{_OPT_DECODER}.project_out.weight": (None, "residual"),
            "lm_head.weight": (None, None),
        }
        family = replace(family, outside=outside)
    return family


# GPT-2, GPT-NeoX (Pythia) and Falcon: q, k, v in one matrix, a plain MLP, LayerNorm.

GPT2 = Family(
    "gpt2",
    "transformer.h",
    (
        Linear(
            "attn.c_attn",
            input_activation="attention_in",
            role="attention",
            output_space="heads",
            rows="qkv",
            transposed=True,
        ),
        Linear("attn.c_proj", input_activation="heads", role="attention", output_space="residual", transposed=True),
        Linear("mlp.c_fc", input_activation="mlp_in", role="mlp", output_space="mlp", transposed=True),
        Linear("mlp.c_proj", input_activation="mlp", role="mlp", output_space="residual", transposed=True),
    ),
    spaces=_SPACES,
    scope=_SCOPE,
    inside={
        **norms("ln_1", "ln_2", bias=True),
        "attn.bias": (None,) * 4,  # causal masks, in old checkpoints
        "attn.masked_bias": (),
    },
    outside={
        "transformer.wte.weight": (None, "residual"),
        "transformer.wpe.weight": (None, "residual"),
        **norms("transformer.ln_f", bias=True),
        "lm_head.weight": (None, "residual"),
    },
    grouped=False,
)

GPT_NEOX = Family(
    "gpt_neox",
    "gpt_neox.layers",
    (
        Linear(
            "attention.query_key_value",
            input_activation="attention_in",
            role="attention",
            output_space="heads",
            rows="qkv_by_head",
        ),
        Linear("attention.dense", input_activation="heads", role="attention", output_space="residual"),
        Linear("mlp.dense_h_to_4h", input_activation="mlp_in", role="mlp", output_space="mlp"),
        Linear("mlp.dense_4h_to_h", input_activation="mlp", role="mlp", output_space="residual"),
    ),
    spaces=_SPACES,
    scope=_SCOPE,
    inside={
        **norms("input_layernorm", "post_attention_layernorm", bias=True),
        "attention.bias": (None,) * 4,  # causal masks, in old checkpoints
        "attention.masked_bias": (),
        "attention.rotary_emb.inv_freq": (None,),
    },
    outside={
        "gpt_neox.embed_in.weight": (None, "residual"),
        **norms("gpt_neox.final_layer_norm", bias=True),
        "embed_out.weight": (None, "residual"),
        "lm_head.weight": (None, "residual"),
    },
    stored={"lm_head.weight": "embed_out.weight"},
    grouped=False,
)

FALCON = Family(
    "falcon",
    "transformer.h",
    (
        Linear(
            "self_attention.query_key_value",
            input_activation="attention_in",
            role="attention",
            output_space="heads",
            rows="qkv_by_head",
        ),
        Linear("self_attention.dense", input_activation="heads", role="attention", output_space="residual"),
        Linear("mlp.dense_h_to_4h", input_activation="mlp_in", role="mlp", output_space="mlp"),
        Linear("mlp.dense_4h_to_h", input_activation="mlp", role="mlp", output_space="residual"),
    ),
    spaces=_SPACES,
    scope=_SCOPE,
    inside={
        **norms("input_layernorm", "post_attention_layernorm", "ln_attn", "ln_mlp", bias=True),
        "self_attention.rotary_emb.inv_freq": (None,),
    },
    outside={
        "transformer.word_embeddings.weight": (None, "residual"),
        **norms("transformer.ln_f", bias=True),
        "lm_head.weight": (None, "residual"),
    },
)

FAMILIES = (*LLAMA_SHAPED, *GEMMAS, OLMO2, PHI3, STABLELM, OPT, GPT2, GPT_NEOX, FALCON)
