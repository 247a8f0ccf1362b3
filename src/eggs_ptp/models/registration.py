"""Registers packed checkpoints with transformers, whichever of the two packages is imported first.

transformers keeps its quantisation methods in two tables of `transformers.quantizers.auto` and has decorators that add
to them, but no entry points for other packages. Importing that module takes seconds, which `import eggs_ptp` must not
take. So if it has been imported already, this package's methods are added at once; otherwise an import hook adds them
right after it has been imported, and removes itself.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

TABLES = "transformers.quantizers.auto"
_QUANTIZER = "eggs_ptp.models.quantizer"


def register() -> None:
    """Add packed checkpoints to the tables of transformers, now or when transformers is imported."""
    if TABLES in sys.modules:
        importlib.import_module(_QUANTIZER)
    elif not any(isinstance(finder, _ImportHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ImportHook())


class _ImportHook:
    """Finds one module by the other finders; not derived from importlib.abc, whose import takes milliseconds."""

    def find_spec(self, name: str, path: Any = None, target: "ModuleType | None" = None) -> Any:
        if name != TABLES:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec: Any = finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _RegisteringLoader(spec.loader)
                return spec
        return None


class _RegisteringLoader:
    """Loads a module by its own loader, then imports the quantizer, which registers itself."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        created: ModuleType | None = self.loader.create_module(spec)
        return created

    def exec_module(self, module: "ModuleType") -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        importlib.import_module(_QUANTIZER)
