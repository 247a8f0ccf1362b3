"""Families of mixtures of experts: Mixtral, Qwen 2 and 3, OLMoE. Llama's attention, and many gated MLPs."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from eggs_ptp.models.families import ATTENTION, GATED_MLP, LLAMA
from eggs_ptp.models.family import Family, Linear, PermutationScope


class Layout(NamedTuple):
    """Names in checkpoints of the layer with the experts, and of an expert's gate, up and down projections."""

    layer: str
    gate: str
    up: str
    down: str


_QWEN = Layout("mlp", "gate_proj", "up_proj", "down_proj")
LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "mixtral": Layout("block_sparse_moe", "w1", "w3", "w2"),
        "qwen2_moe": _QWEN,
        "qwen3_moe": _QWEN,
        "olmoe": _QWEN,
    }
)


def moe_of(config: Any) -> Family:
    """Return the family of a mixture of experts.

    The intermediate channels of each expert are a space of their own, so that permutations are found and folded expert
    by expert.

    Args:
        config: The model's config; its `model_type` is one of `LAYOUTS`.
    """
    layout = LAYOUTS[config.model_type]
    count = int(config.num_local_experts if config.model_type == "mixtral" else config.num_experts)
    dense_mlp = tuple(replace(linear, optional=True) for linear in GATED_MLP)  # of blocks without experts
    linears = (*ATTENTION, *dense_mlp)
    spaces = dict(LLAMA.spaces)
    scope = dict[str, PermutationScope](LLAMA.scope)
    for number in range(count):
        linears += tuple(_expert(f"{layout.layer}.experts.{number}", layout, number))
        spaces |= {f"experts_in[{number}]": "residual", f"experts[{number}]": f"experts[{number}]"}
        scope[f"experts[{number}]"] = "block"
    inside = {**LLAMA.inside, f"{layout.layer}.gate.weight": (None, "residual")}
    if config.model_type == "qwen2_moe":
        linears += tuple(_shared_expert(layout))
        spaces["shared"] = "shared"
        scope["shared"] = "block"
        inside["mlp.shared_expert_gate.weight"] = (None, "residual")
    return replace(LLAMA, model_type=config.model_type, linears=linears, spaces=spaces, scope=scope, inside=inside)


def _expert(path: str, layout: Layout, number: int) -> Iterator[Linear]:
    """Yield the linears of an expert, which sees the tokens that the router sends to it."""
    input_activation = f"experts_in[{number}]"
    space = f"experts[{number}]"
    for name in (layout.gate, layout.up):
        yield Linear(f"{path}.{name}", input_activation, "mlp", space, optional=True, routed=True)
    yield Linear(f"{path}.{layout.down}", space, "mlp", "residual", adds=False, optional=True, routed=True)


def _shared_expert(layout: Layout) -> Iterator[Linear]:
    """Yield the linears of the expert that sees every token; its output is gated."""
    for name in (layout.gate, layout.up):
        yield Linear(f"mlp.shared_expert.{name}", "mlp_in", "mlp", "shared", optional=True)
    yield Linear(f"mlp.shared_expert.{layout.down}", "shared", "mlp", "residual", adds=False, optional=True)
