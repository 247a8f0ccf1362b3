"""OPT: learned positions, biases, a plain MLP, and norms before attention and MLP, or behind them (OPT-350m)."""

from dataclasses import replace
from typing import Any

from eggs_ptp.models.family import Family, Linear, norms

_DECODER = "model.decoder"

OPT = Family(
    "opt",
    f"{_DECODER}.layers",
    (
        Linear("self_attn.q_proj", reads="attention_in", role="attention"),
        Linear("self_attn.k_proj", reads="attention_in", role="attention"),
        Linear("self_attn.v_proj", reads="attention_in", role="attention", writes="heads"),
        Linear("self_attn.out_proj", reads="heads", role="attention", writes="residual"),
        Linear("fc1", reads="mlp_in", role="mlp", writes="mlp"),
        Linear("fc2", reads="mlp", role="mlp", writes="residual"),
    ),
    spaces={"attention_in": "residual", "heads": "heads", "mlp_in": "residual", "mlp": "mlp"},
    reach={"residual": "model", "heads": "head", "mlp": "block"},
    inside=norms("self_attn_layer_norm", "final_layer_norm", bias=True),
    outside={
        f"{_DECODER}.embed_tokens.weight": (None, "residual"),
        f"{_DECODER}.embed_positions.weight": (None, "residual"),
        **norms(f"{_DECODER}.final_layer_norm", bias=True),
        "lm_head.weight": (None, "residual"),
    },
    grouped=False,
)


def opt_of(config: Any) -> Family:
    """OPT as a config has it: which side its norms are on, and embeddings that are projected to the stream's width."""
    family = OPT
    if not config.do_layer_norm_before:
        linears = tuple(replace(linear, adds=linear.writes != "residual") for linear in OPT.linears)
        family = replace(family, linears=linears)
    if config.word_embed_proj_dim != config.hidden_size:
        outside = {
            **OPT.outside,
            f"{_DECODER}.embed_tokens.weight": (None, None),
            f"{_DECODER}.project_in.weight": ("residual", None),
            f"{_DECODER}.project_out.weight": (None, "residual"),
            "lm_head.weight": (None, None),
        }
        family = replace(family, outside=outside)
    return family
