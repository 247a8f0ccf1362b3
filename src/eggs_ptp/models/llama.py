"""The Llama shape: separate q, k, v, o and a gated MLP. Biases and query/key norms make no difference to it."""

from eggs_ptp.models.family import Family, Linear

_LINEARS = (
    Linear("self_attn.q_proj", reads="attention_in", role="attention"),
    Linear("self_attn.k_proj", reads="attention_in", role="attention"),
    Linear("self_attn.v_proj", reads="attention_in", role="attention", writes="heads"),
    Linear("self_attn.o_proj", reads="heads", role="attention", writes="residual"),
    Linear("mlp.gate_proj", reads="mlp_in", role="mlp", writes="mlp"),
    Linear("mlp.up_proj", reads="mlp_in", role="mlp", writes="mlp"),
    Linear("mlp.down_proj", reads="mlp", role="mlp", writes="residual"),
)

LLAMA_SHAPED = tuple(
    Family(
        model_type,
        "model.layers",
        "model.norm",
        _LINEARS,
        spaces={"attention_in": "residual", "heads": "heads", "mlp_in": "residual", "mlp": "mlp"},
        reach={"residual": "model", "heads": "head", "mlp": "block"},
        inside={
            "input_layernorm.weight": ("residual",),
            "post_attention_layernorm.weight": ("residual",),
            "self_attn.q_norm.weight": (None,),  # along the head dimension, which rotation fixes
            "self_attn.k_norm.weight": (None,),
            "self_attn.rotary_emb.inv_freq": (None,),  # old checkpoints store it
        },
        outside={
            "model.embed_tokens.weight": (None, "residual"),
            "model.norm.weight": ("residual",),
            "lm_head.weight": (None, "residual"),
        },
    )
    for model_type in ("llama", "mistral", "qwen2", "qwen3")
)
