"""FAMILIES: every supported model type."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from eggs_ptp.errors import ModelError
from eggs_ptp.models.family import Family
from eggs_ptp.models.gemma import GEMMAS, OLMO2
from eggs_ptp.models.gpt import FALCON, GPT2, GPT_NEOX
from eggs_ptp.models.llama import LLAMA_SHAPED
from eggs_ptp.models.moe import LAYOUTS, moe_of
from eggs_ptp.models.opt import OPT, opt_of
from eggs_ptp.models.phi3 import PHI3
from eggs_ptp.models.stablelm import STABLELM

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for family in (*LLAMA_SHAPED, *GEMMAS, OLMO2, PHI3, STABLELM, OPT, GPT2, GPT_NEOX, FALCON)
    }
)

# Where models of one type differ by their config in more than size.
VARIANTS: Mapping[str, Callable[[Any], Family]] = MappingProxyType({"opt": opt_of, **dict.fromkeys(LAYOUTS, moe_of)})


def family_for(model_type: str, where: str) -> Family:
    """Look a model type up.

    Raises:
        ModelError: no family has it; names it, the folder (`where`) and those that have one.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"{where}: model type {model_type!r} has no family here; those that have: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def family_of(config: Any) -> Family | None:
    """The family of a model with this config of transformers; None where there is none for its model type."""
    if config.model_type in VARIANTS:
        return VARIANTS[config.model_type](config)
    return FAMILIES.get(config.model_type)
