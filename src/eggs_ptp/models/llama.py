"""The Llama shape: separate q, k, v, o and a gated MLP. Biases and query/key norms make no difference to it."""

from dataclasses import replace

from eggs_ptp.models.family import Family, Linear, norms

ATTENTION = (
    Linear("self_attn.q_proj", reads="attention_in", role="attention"),
    Linear("self_attn.k_proj", reads="attention_in", role="attention"),
    Linear("self_attn.v_proj", reads="attention_in", role="attention", writes="heads"),
    Linear("self_attn.o_proj", reads="heads", role="attention", writes="residual"),
)
GATED_MLP = (
    Linear("mlp.gate_proj", reads="mlp_in", role="mlp", writes="mlp"),
    Linear("mlp.up_proj", reads="mlp_in", role="mlp", writes="mlp"),
    Linear("mlp.down_proj", reads="mlp", role="mlp", writes="residual"),
)

LLAMA = Family(
    "llama",
    "model.layers",
    (*ATTENTION, *GATED_MLP),
    spaces={"attention_in": "residual", "heads": "heads", "mlp_in": "residual", "mlp": "mlp"},
    reach={"residual": "model", "heads": "head", "mlp": "block"},
    inside={
        **norms("input_layernorm", "post_attention_layernorm"),
        "self_attn.q_norm.weight": (None,),  # along what rotation fixes
        "self_attn.k_norm.weight": (None,),
        "self_attn.rotary_emb.inv_freq": (None,),  # old checkpoints store it
    },
    outside={
        "model.embed_tokens.weight": (None, "residual"),
        **norms("model.norm"),
        "lm_head.weight": (None, "residual"),
    },
)

LLAMA_SHAPED = tuple(replace(LLAMA, model_type=model_type) for model_type in ("llama", "mistral", "qwen2", "qwen3"))
