"""The Llama shape: separate q, k, v, o and a gated MLP. Biases and query/key norms make no difference to it."""

from eggs_ptp.models.family import Family, Linear

_LINEARS = (
    Linear("self_attn.q_proj", reads="attention_in", role="attention"),
    Linear("self_attn.k_proj", reads="attention_in", role="attention"),
    Linear("self_attn.v_proj", reads="attention_in", role="attention"),
    Linear("self_attn.o_proj", reads="heads", role="attention"),
    Linear("mlp.gate_proj", reads="mlp_in", role="mlp"),
    Linear("mlp.up_proj", reads="mlp_in", role="mlp"),
    Linear("mlp.down_proj", reads="mlp", role="mlp"),
)

LLAMA_SHAPED = tuple(
    Family(model_type, "model.layers", _LINEARS) for model_type in ("llama", "mistral", "qwen2", "qwen3")
)
