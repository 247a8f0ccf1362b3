"""Initial inputs of the fuzzer: small model folders of every form."""

import io
import json
from collections.abc import Iterator

import numpy as np
import torch
from case import SPLIT
from safetensors.torch import save
from torch import Tensor

from eggs_ptp.core.pack import pack, quantise
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse.packed_config import PackedConfig

DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 8,
}


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield inputs with names: dense folders, with records and indices, and packed ones with every type of values."""
    generator = torch.Generator().manual_seed(0)
    pattern = Pattern(2, 4)
    weights = {
        f"{DOWN}.weight": torch.randn(4, 8, generator=generator),
        f"{UP}.weight": torch.randn(8, 4, generator=generator),
    }
    for weight in weights.values():
        weight.view(8, 4)[:, 2:] = 0
    others = {"model.norm.weight": torch.ones(4), "flags": torch.tensor([True, False, True, True])}
    yield "dense", _folder(CONFIG, weights | others)
    yield "dense-tied", _folder(CONFIG | {"tie_word_embeddings": True}, weights | {"lm_head.weight": torch.ones(8, 4)})
    for dtype in (torch.bfloat16, torch.float16):
        yield f"dense-{dtype}".replace("torch.", ""), _folder(CONFIG, {DOWN: torch.ones(2, 2, dtype=dtype)})
    for mode in (None, "mask", "gather", "fold"):
        unpruned = others
        permutations = {DOWN: torch.arange(8), UP: torch.arange(4)}
        if mode == "fold":
            unpruned = {
                "model.norm.weight": torch.ones(4),
                "model.layers.0.self_attn.o_proj.weight": torch.ones(4, 4),
                "model.layers.0.self_attn.v_proj.weight": torch.ones(2, 4),
            }
            permutations = {
                "residual": torch.tensor([2, 0, 1, 3]),
                "model.layers.0.mlp": torch.arange(8).flip(0),
                "model.layers.0.heads": torch.tensor([1, 0]),
            }
        record = _record([DOWN, UP], list(unpruned), mode, permuted=mode is not None)
        stored = {name: permutation.int().clone() for name, permutation in permutations.items()}
        folder = _folder(CONFIG, weights | unpruned, record=record, permutations=stored if mode else None)
        yield f"record-{mode}", folder
    masks = io.BytesIO()
    np.savez_compressed(masks, **{DOWN: np.ones((4, 8), bool), f"{UP}.mask": np.zeros(4, np.uint8)})
    yield "masks", SPLIT.join([b"{}", b"", b"", b"{}", masks.getvalue()])
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys({**weights, **others}, "a.safetensors")}
    yield "index", _folder(CONFIG, weights | others, index=index)
    names = (DOWN, UP)
    permutations = {DOWN: torch.randperm(8, generator=generator), UP: torch.randperm(4, generator=generator)}
    for values in (None, "int8", "int4"):
        for permuted in (False, True):
            tensors = {}
            for name in names:
                weight = weights[f"{name}.weight"]
                permutation = permutations[name] if permuted else None
                if permutation is not None:
                    weight = weight[:, permutation.argsort()]
                packed = pack(weight, pattern, permutation)
                packed = packed if values is None else quantise(packed, values)
                tensors |= {f"{name}.{part}": tensor for part, tensor in packed.tensors().items()}
            packed_config = PackedConfig(
                dict.fromkeys(names, pattern),
                frozenset(names if permuted else ()),
                dict.fromkeys(names, values) if values else {},
            )
            config = CONFIG | {"quantization_config": packed_config.to_dict()}
            record = _record([DOWN, UP], list(others), None, permuted=False)
            yield f"packed-{values}-{permuted}", _folder(config, tensors | others, record=record)


def _record(names: list[str], others: list[str], mode: str | None, *, permuted: bool) -> dict[str, object]:
    matrix = {"pattern": "2:4", "density": 0.5, "permuted": permuted, "in_order": not permuted, "updated": False}
    return {
        "format": 2,
        "source": {"model": "tiny", "revision": None},
        "orders": mode,
        "matrices": [{"name": name, **matrix, "nonzero": 16} for name in names],
        "untouched": dict.fromkeys(others, "0" * 64),
        "tuned": [],
    }


def _folder(
    config: dict[str, object],
    tensors: dict[str, Tensor],
    record: object = None,
    index: object = None,
    permutations: dict[str, Tensor] | None = None,
) -> bytes:
    texts = [b"" if content is None else json.dumps(content).encode() for content in (config, record, index)]
    permutation_parts = _header_and_data(permutations) if permutations else ()
    return SPLIT.join([*texts, *_header_and_data(tensors), *permutation_parts])


def _header_and_data(tensors: dict[str, Tensor]) -> tuple[bytes, bytes]:
    content = save(tensors)
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]
