"""eggs-ptp: one-shot N:M pruning of Hugging Face causal language models.

The names below are imported when they are first used, so that `import eggs_ptp` costs nothing. After it,
`transformers` loads packed checkpoints.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eggs_ptp.api import evaluate, load, plan, prune, verify
    from eggs_ptp.core.pattern import Pattern, Unstructured
    from eggs_ptp.errors import EggsError
    from eggs_ptp.method.catalogue import METHODS
    from eggs_ptp.method.step import Step
    from eggs_ptp.recipe.read import read_recipe
    from eggs_ptp.recipe.recipe import Recipe
    from eggs_ptp.sparse.convert import pack
    from eggs_ptp.sparse.zeros import keep_zeros

_HOMES = {
    "prune": "api",
    "plan": "api",
    "verify": "api",
    "evaluate": "api",
    "load": "api",
    "pack": "sparse.convert",
    "keep_zeros": "sparse.zeros",
    "Recipe": "recipe.recipe",
    "read_recipe": "recipe.read",
    "METHODS": "method.catalogue",
    "Step": "method.step",
    "Pattern": "core.pattern",
    "Unstructured": "core.pattern",
    "EggsError": "errors",
}

__all__ = [
    "METHODS",
    "EggsError",
    "Pattern",
    "Recipe",
    "Step",
    "Unstructured",
    "evaluate",
    "keep_zeros",
    "load",
    "pack",
    "plan",
    "prune",
    "read_recipe",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


importlib.import_module(f"{__name__}.models.registration").register()
