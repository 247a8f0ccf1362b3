"""Seeds: small folders of every form as inputs of the fuzzer."""

import json
from collections.abc import Iterator

import torch
from case import join
from safetensors.torch import save
from torch import Tensor

from eggs_ptp.core.pack import pack, quantise
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse.contents import Contents

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
    """Inputs by name: dense folders, with records and indices, and packed ones of every kind of values."""
    generator = torch.Generator().manual_seed(0)
    pattern = Pattern(2, 4)
    weights = {f"{name}.weight": torch.randn(4, 8, generator=generator) for name in (DOWN, UP)}
    for weight in weights.values():
        weight.view(4, 2, 4)[..., 2:] = 0
    others = {"model.norm.weight": torch.ones(4), "flags": torch.tensor([True, False, True, True])}
    yield "dense", _folder(CONFIG, weights | others)
    yield "dense-tied", _folder(CONFIG | {"tie_word_embeddings": True}, weights | {"lm_head.weight": torch.ones(8, 4)})
    for dtype in (torch.bfloat16, torch.float16):
        yield f"dense-{dtype}".replace("torch.", ""), _folder(CONFIG, {DOWN: torch.ones(2, 2, dtype=dtype)})
    for orders in (None, "mask", "gather", "fold"):
        tensors = {**weights, **others}
        record = _record([DOWN, UP], list(others), orders, permuted=orders not in (None, "fold"))
        yield f"record-{orders}", _folder(CONFIG, tensors, record=record)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys({**weights, **others}, "a.safetensors")}
    yield "index", _folder(CONFIG, weights | others, index=index)
    order = torch.randperm(8, generator=generator)
    for kind in (None, "int8", "int4"):
        for ordered in (None, order):
            tensors = {}
            for name in (DOWN, UP):
                weight = weights[f"{name}.weight"]
                packed = pack(weight if ordered is None else weight[:, ordered.argsort()], pattern, ordered)
                packed = packed if kind is None else quantise(packed, kind)
                tensors |= {f"{name}.{part}": tensor for part, tensor in packed.tensors().items()}
            names = (DOWN, UP)
            contents = Contents(
                dict.fromkeys(names, pattern),
                frozenset(() if ordered is None else names),
                dict.fromkeys(names, kind) if kind else {},
            )
            config = CONFIG | {"quantization_config": contents.to_dict()}
            record = _record([DOWN, UP], list(others), None, permuted=False)
            yield f"packed-{kind}-{ordered is not None}", _folder(config, tensors | others, record=record)


def _record(names: list[str], others: list[str], orders: str | None, *, permuted: bool) -> dict[str, object]:
    matrix = {"pattern": "2:4", "density": 0.5, "permuted": permuted, "in_order": not permuted, "updated": False}
    return {
        "format": 2,
        "source": {"model": "tiny", "revision": None},
        "orders": orders,
        "matrices": [{"name": name, **matrix, "nonzero": 16} for name in names],
        "untouched": dict.fromkeys(others, "0" * 64),
        "tuned": [],
    }


def _folder(
    config: dict[str, object], tensors: dict[str, Tensor], record: object = None, index: object = None
) -> bytes:
    content = save(tensors)
    end = 8 + int.from_bytes(content[:8], "little")
    texts = [b"" if one is None else json.dumps(one).encode() for one in (config, record, index)]
    return join(*texts, content[8:end], content[end:])
