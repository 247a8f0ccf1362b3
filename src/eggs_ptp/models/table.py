"""FAMILIES: every supported model type."""

from collections.abc import Mapping
from types import MappingProxyType

from eggs_ptp.errors import ModelError
from eggs_ptp.models.family import Family
from eggs_ptp.models.llama import LLAMA_SHAPED

FAMILIES: Mapping[str, Family] = MappingProxyType({family.model_type: family for family in LLAMA_SHAPED})


def family_for(model_type: str, where: str) -> Family:
    """Look a model type up.

    Raises:
        ModelError: no family has it; names it, the folder (`where`) and the supported ones.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"{where}: architecture {model_type!r} is not supported; supported model types: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]
