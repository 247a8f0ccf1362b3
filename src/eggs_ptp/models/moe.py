"""Mixtures of experts: Mixtral, Qwen 2 and 3, OLMoE. Llama's attention, and an MLP of which there are many."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from eggs_ptp.models.family import Family, Linear, Reach
from eggs_ptp.models.llama import ATTENTION, GATED_MLP, LLAMA


class Layout(NamedTuple):
    """What checkpoints call the layer with the experts, and the gate, up and down of an expert."""

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
    """The family of a mixture of experts with this config.

    Every expert's inside is a space of its own, so that orders are found and folded expert by expert.
    """
    layout = LAYOUTS[config.model_type]
    count = int(config.num_local_experts if config.model_type == "mixtral" else config.num_experts)
    linears = (*ATTENTION, *(replace(linear, optional=True) for linear in GATED_MLP))  # blocks may be without experts
    spaces, reach = dict(LLAMA.spaces), dict[str, Reach](LLAMA.reach)
    for number in range(count):
        linears += tuple(_gated(f"{layout.layer}.experts.{number}", layout, number))
        spaces |= {f"experts_in[{number}]": "residual", f"experts[{number}]": f"experts[{number}]"}
        reach[f"experts[{number}]"] = "block"
    inside = {**LLAMA.inside, f"{layout.layer}.gate.weight": (None, "residual")}
    if config.model_type == "qwen2_moe":
        linears += tuple(_shared(layout))
        spaces["shared"], reach["shared"] = "shared", "block"
        inside["mlp.shared_expert_gate.weight"] = (None, "residual")
    return replace(LLAMA, model_type=config.model_type, linears=linears, spaces=spaces, reach=reach, inside=inside)


def _gated(path: str, layout: Layout, number: int) -> Iterator[Linear]:
    reads, space = f"experts_in[{number}]", f"experts[{number}]"
    for name in (layout.gate, layout.up):
        yield Linear(f"{path}.{name}", reads, "mlp", space, optional=True, routed=True)
    yield Linear(f"{path}.{layout.down}", space, "mlp", "residual", adds=False, optional=True, routed=True)


def _shared(layout: Layout) -> Iterator[Linear]:
    """The expert that sees every token; what it gives is gated."""
    for name in (layout.gate, layout.up):
        yield Linear(f"mlp.shared_expert.{name}", "mlp_in", "mlp", "shared", optional=True)
    yield Linear(f"mlp.shared_expert.{layout.down}", "shared", "mlp", "residual", adds=False, optional=True)
