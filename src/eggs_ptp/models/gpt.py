"""The GPT shapes: q, k, v in one matrix, a plain MLP, LayerNorm. GPT-2, GPT-NeoX (Pythia) and Falcon."""

from eggs_ptp.models.family import Family, Linear, Reach, norms

_SPACES = {"attention_in": "residual", "heads": "heads", "mlp_in": "residual", "mlp": "mlp"}
_REACH: dict[str, Reach] = {"residual": "model", "heads": "head", "mlp": "block"}

GPT2 = Family(
    "gpt2",
    "transformer.h",
    (
        Linear("attn.c_attn", reads="attention_in", role="attention", writes="heads", rows="qkv", transposed=True),
        Linear("attn.c_proj", reads="heads", role="attention", writes="residual", transposed=True),
        Linear("mlp.c_fc", reads="mlp_in", role="mlp", writes="mlp", transposed=True),
        Linear("mlp.c_proj", reads="mlp", role="mlp", writes="residual", transposed=True),
    ),
    spaces=_SPACES,
    reach=_REACH,
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
        Linear("attention.query_key_value", reads="attention_in", role="attention", writes="heads", rows="qkv_by_head"),
        Linear("attention.dense", reads="heads", role="attention", writes="residual"),
        Linear("mlp.dense_h_to_4h", reads="mlp_in", role="mlp", writes="mlp"),
        Linear("mlp.dense_4h_to_h", reads="mlp", role="mlp", writes="residual"),
    ),
    spaces=_SPACES,
    reach=_REACH,
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
            "self_attention.query_key_value", reads="attention_in", role="attention", writes="heads", rows="qkv_by_head"
        ),
        Linear("self_attention.dense", reads="heads", role="attention", writes="residual"),
        Linear("mlp.dense_h_to_4h", reads="mlp_in", role="mlp", writes="mlp"),
        Linear("mlp.dense_4h_to_h", reads="mlp", role="mlp", writes="residual"),
    ),
    spaces=_SPACES,
    reach=_REACH,
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
