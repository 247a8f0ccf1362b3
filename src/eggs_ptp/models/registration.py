"""Registers packed matrices with transformers and peft, whichever of the packages is imported first.

transformers keeps its quantisation methods in two tables of `transformers.quantizers.auto` and has decorators that add
to them, but no entry points for other packages; peft has a table in every config. Importing these modules takes
seconds, which `import eggs_ptp` must not take. So to a module that has been imported already, this package's part is
added at once; otherwise an import hook adds it right after it has been imported, and removes itself.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# Modules of other packages, and the modules of this one that add to them when they are imported.
_ADDED = {
    "transformers.quantizers.auto": "eggs_ptp.models.quantizer",
    "peft.tuners.lora.model": "eggs_ptp.models.packed_lora",
}


def register() -> None:
    """Add packed checkpoints to transformers and packed layers to peft, now or when these are imported."""
    hooked = {finder.module for finder in sys.meta_path if isinstance(finder, _ImportHook)}
    for module, added in _ADDED.items():
        if module in sys.modules:
            importlib.import_module(added)
        elif module not in hooked:
            sys.meta_path.insert(0, _ImportHook(module, added))


class _ImportHook:
    """Finds one module by the other finders; not derived from importlib.abc, whose import takes milliseconds."""

    def __init__(self, module: str, added: str) -> None:
        self.module = module
        self._added = added

    def find_spec(self, name: str, path: Any = None, target: "ModuleType | None" = None) -> Any:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec: Any = finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _RegisteringLoader(spec.loader, self._added)
                return spec
        return None


class _RegisteringLoader:
    """Loads a module by its own loader, then imports the module of this package that adds to it."""

    def __init__(self, loader: Any, added: str) -> None:
        self.loader = loader
        self._added = added

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        created: ModuleType | None = self.loader.create_module(spec)
        return created

    def exec_module(self, module: "ModuleType") -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        importlib.import_module(self._added)
