"""eggs-ptp: one-shot N:M pruning of Hugging Face causal language models.

The public names are imported at their first use, so that `import eggs_ptp` is fast. It also makes `transformers` load
packed checkpoints.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eggs_ptp.api import adapt, assess, evaluate, export_base, load, plan, prune, verify
    from eggs_ptp.core.pattern import Pattern, Unstructured
    from eggs_ptp.errors import EggsError
    from eggs_ptp.method.catalogue import METHODS
    from eggs_ptp.method.step import Step
    from eggs_ptp.recipe.read import read_recipe
    from eggs_ptp.recipe.recipe import Recipe
    from eggs_ptp.sparse.convert import pack
    from eggs_ptp.sparse.keep_zeros import keep_zeros

_MODULES = {
    "prune": "api",
    "plan": "api",
    "verify": "api",
    "export_base": "api",
    "adapt": "api",
    "evaluate": "api",
    "assess": "api",
    "load": "api",
    "pack": "sparse.convert",
    "keep_zeros": "sparse.keep_zeros",
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
    "adapt",
    "assess",
    "evaluate",
    "export_base",
    "keep_zeros",
    "load",
    "pack",
    "plan",
    "prune",
    "read_recipe",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


importlib.import_module(f"{__name__}.models.registration").register()
