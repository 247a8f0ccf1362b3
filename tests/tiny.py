"""Random models of two blocks for every architecture, with a byte-level tokenizer, saved as Hugging Face folders."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

_COMMON: dict[str, object] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
_GROUPED: dict[str, object] = {"num_key_value_heads": 2, "intermediate_size": 64}
_GEMMA: dict[str, object] = {**_GROUPED, "head_dim": 12, "sliding_window": 16}
_FALCON: dict[str, object] = {"ffn_hidden_size": 64, "bias": True}
# Families that are not shaped like Llama: a name, the model type, and keys of the config besides the common ones.
OTHERS: dict[str, tuple[str, dict[str, object]]] = {
    "gemma2": ("gemma2", {**_GEMMA, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
    "olmo2": ("olmo2", {**_GROUPED, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "phi3": ("phi3", {**_GROUPED, "num_attention_heads": 8, "partial_rotary_factor": 0.5}),
    "stablelm": ("stablelm", {**_GROUPED, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {**_GROUPED, "use_parallel_residual": True, "qk_layernorm": True}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "opt-350m": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "gpt2": ("gpt2", {"n_inner": 64}),
    "gpt_neox": ("gpt_neox", {"intermediate_size": 64, "hidden_size": 24, "num_attention_heads": 3}),
    "gpt_neox-serial": ("gpt_neox", {"intermediate_size": 64, "use_parallel_residual": False}),
    "falcon-7b": ("falcon", _FALCON),
    "falcon-40b": (
        "falcon",
        {**_FALCON, "new_decoder_architecture": True, "num_attention_heads": 8, "num_kv_heads": 2},
    ),
    "falcon-rw": ("falcon", {**_FALCON, "multi_query": False, "parallel_attn": False, "alibi": True}),
}
_SPARSE: dict[str, object] = {**_GROUPED, "num_experts_per_tok": 2, "head_dim": 8}
_QWEN: dict[str, object] = {**_SPARSE, "num_experts": 6, "moe_intermediate_size": 16}
# Mixtures of experts. Block 0 of the first one has no experts.
MIXTURES: dict[str, tuple[str, dict[str, object]]] = {
    "qwen2_moe": ("qwen2_moe", {**_QWEN, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]}),
    "qwen3_moe": ("qwen3_moe", {**_QWEN, "norm_topk_prob": True}),
    "mixtral": ("mixtral", {**_SPARSE, "num_local_experts": 4}),
    "olmoe": ("olmoe", {**_SPARSE, "num_experts": 4}),
}
# Model types without a family. BLOOM's blocks return tuples, and take one ALiBi tensor for all windows.
UNKNOWN: dict[str, tuple[str, dict[str, object]]] = {
    "bloom": ("bloom", {}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "gpt_bigcode": ("gpt_bigcode", {"n_inner": 64}),
    "cohere": ("cohere", _GROUPED),
}


def tiny_model(
    folder: Path,
    model_type: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tie: bool = False,
    shard_size: str = "5GB",
    **changes: object,
) -> Path:
    """Save a random model and return its folder.

    Args:
        folder: The folder to write.
        model_type: A model type, or a name in `OTHERS`, `MIXTURES` or `UNKNOWN`. Other model types get the config of a
            Llama with 4 query heads on 2 key/value heads and 64 intermediate channels.
        seed: Seed of the weights.
        dtype: Data type of the weights.
        tie: Whether head and embeddings are tied.
        shard_size: Largest size of a weight file.
        **changes: Keys of the config.
    """
    llama: dict[str, object] = {**_GROUPED, "head_dim": 8, "pad_token_id": None}
    model_type, keys = {**OTHERS, **MIXTURES, **UNKNOWN}.get(model_type, (model_type, llama))
    settings = {**_COMMON, "tie_word_embeddings": tie, **keys, **changes}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    for parameter in model.parameters():  # the library's initial weights are tiny, and its norms all ones
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, and a begin and an end token that are not added by default."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=128)


def change_packed(folder: Path, **changes: object) -> None:
    """Change keys of `quantization_config` in a packed folder's config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(changes)
    path.write_text(json.dumps(config))
