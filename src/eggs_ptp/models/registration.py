"""Making transformers know packed checkpoints, whichever of the two packages is imported first.

transformers keeps its quantisation methods in two tables of `transformers.quantizers.auto`, has decorators that add to
them, and no way to announce a package that would. That module takes seconds to import, and `import eggs_ptp` must not
pay them. So one that is already there is added to at once; otherwise a finder waits for its import, adds ours right
after its own code has run, and leaves.
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
    """Add packed checkpoints to the tables of transformers, now or when they come to be."""
    if TABLES in sys.modules:
        importlib.import_module(_QUANTIZER)
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting:
    """A finder of one module, which the other finders find; without importlib.abc, which costs milliseconds."""

    def find_spec(self, name: str, path: Any = None, target: "ModuleType | None" = None) -> Any:
        if name != TABLES:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec: Any = finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _Then(spec.loader)
                return spec
        return None


class _Then:
    """The loader that was found, and our quantizer after it."""

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
