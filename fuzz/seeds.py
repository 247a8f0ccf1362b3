"""Seeds: small folders of every form as inputs of the fuzzer."""

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
    for orders in (None, "mask", "gather", "fold"):
        attention = {"model.layers.0.self_attn.o_proj.weight": torch.ones(4, 4)}
        attention["model.layers.0.self_attn.v_proj.weight"] = torch.ones(2, 4)
        tensors = {**weights, **({"model.norm.weight": torch.ones(4), **attention} if orders == "fold" else others)}
        record = _record(
            [DOWN, UP], [name for name in tensors if name not in weights], orders, permuted=orders is not None
        )
        found = {"residual": torch.tensor([2, 0, 1, 3]), "model.layers.0.mlp": torch.arange(8).flip(0)}
        found["model.layers.0.heads"] = torch.tensor([1, 0])
        found = {DOWN: torch.arange(8), UP: torch.arange(4)} if record["orders"] in ("mask", "gather") else found
        kept = {name: order.int().clone() for name, order in found.items()}
        yield f"record-{orders}", _folder(CONFIG, tensors, record=record, orders=kept if orders else None)
    masks = io.BytesIO()
    np.savez_compressed(masks, **{DOWN: np.ones((4, 8), bool), f"{UP}.mask": np.zeros(4, np.uint8)})
    yield "masks", SPLIT.join([b"{}", b"", b"", b"{}", masks.getvalue()])
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys({**weights, **others}, "a.safetensors")}
    yield "index", _folder(CONFIG, weights | others, index=index)
    orders_of = {DOWN: torch.randperm(8, generator=generator), UP: torch.randperm(4, generator=generator)}
    for kind in (None, "int8", "int4"):
        for ordered in (False, True):
            tensors = {}
            for name in (DOWN, UP):
                weight = weights[f"{name}.weight"]
                order = orders_of[name] if ordered else None
                packed = pack(weight if order is None else weight[:, order.argsort()], pattern, order)
                packed = packed if kind is None else quantise(packed, kind)
                tensors |= {f"{name}.{part}": tensor for part, tensor in packed.tensors().items()}
            names = (DOWN, UP)
            contents = Contents(
                dict.fromkeys(names, pattern),
                frozenset(names if ordered else ()),
                dict.fromkeys(names, kind) if kind else {},
            )
            config = CONFIG | {"quantization_config": contents.to_dict()}
            record = _record([DOWN, UP], list(others), None, permuted=False)
            yield f"packed-{kind}-{ordered}", _folder(config, tensors | others, record=record)


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
    config: dict[str, object],
    tensors: dict[str, Tensor],
    record: object = None,
    index: object = None,
    orders: dict[str, Tensor] | None = None,
) -> bytes:
    texts = [b"" if one is None else json.dumps(one).encode() for one in (config, record, index)]
    return SPLIT.join([*texts, *_cut(tensors), *(_cut(orders) if orders else ())])


def _cut(tensors: dict[str, Tensor]) -> tuple[bytes, bytes]:
    content = save(tensors)
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]
