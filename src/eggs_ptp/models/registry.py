"""The supported model types and their families."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from eggs_ptp.errors import ModelError
from eggs_ptp.models import families
from eggs_ptp.models.family import Family
from eggs_ptp.models.moe import LAYOUTS, moe_of

FAMILIES: Mapping[str, Family] = MappingProxyType({family.model_type: family for family in families.FAMILIES})

# Families of model types whose structure depends on the config, as functions of the config.
VARIANTS: Mapping[str, Callable[[Any], Family]] = MappingProxyType(
    {"opt": families.opt_of, **dict.fromkeys(LAYOUTS, moe_of)}
)


def family_for(model_type: str, folder: str) -> Family:
    """Return the family of a model type.

    Args:
        model_type: The model type, as in config.json.
        folder: The model's folder, for the error message.

    Raises:
        ModelError: No family has it; names those that exist.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"{folder}: model type {model_type!r} has no family here; those that have one: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def family_of(config: Any) -> Family | None:
    """Return the family of a model; None if its model type has none.

    Args:
        config: The model's config, as transformers loads it.
    """
    if config.model_type in VARIANTS:
        return VARIANTS[config.model_type](config)
    return FAMILIES.get(config.model_type)
