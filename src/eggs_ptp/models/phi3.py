"""Phi-3: the Llama shape with q, k, v in one matrix, and gate and up in another."""

from dataclasses import replace

from eggs_ptp.models.family import Linear
from eggs_ptp.models.llama import LLAMA

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    linears=(
        Linear("self_attn.qkv_proj", reads="attention_in", role="attention", writes="heads", rows="qkv"),
        Linear("self_attn.o_proj", reads="heads", role="attention", writes="residual"),
        Linear("mlp.gate_up_proj", reads="mlp_in", role="mlp", writes="mlp", rows="pair"),
        Linear("mlp.down_proj", reads="mlp", role="mlp", writes="residual"),
    ),
)
