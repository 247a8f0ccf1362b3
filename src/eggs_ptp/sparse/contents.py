"""Contents: what a packed checkpoint says of itself in its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eggs_ptp.core.grid import GRIDS
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.errors import CheckpointError, PatternError

METHOD = "eggs"
FORMATS = (1, 2, 3)
# Format 1 had `"quant_method": "eggs"`, which transformers without this package skips with a warning, to make up random
# weights. A block without quant_method it refuses; what it should be told stands where a reader of that error looks.
# Format 3 has `transposed`; a folder without any is written as format 2, which older versions read.
_NOTE = "packed by eggs-ptp: import eggs_ptp before transformers loads this"


@dataclass(frozen=True)
class Contents:
    """The packed matrices by module name, each with its pattern.

    `ordered` are those with an order of their own, `values` the kinds of quantised values ("int8", "int4") of those
    that have some, `transposed` those whose dense weight is (in, out).
    """

    matrices: Mapping[str, Pattern]
    ordered: frozenset[str] = field(default_factory=frozenset)
    values: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = field(default_factory=frozenset)

    def to_dict(self) -> dict[str, Any]:
        """The block `quantization_config`."""
        return {
            METHOD: _NOTE,
            "format": 3 if self.transposed else 2,
            "matrices": {name: str(pattern) for name, pattern in self.matrices.items()},
            "values": dict(self.values),
            "ordered": sorted(self.ordered),
            **({"transposed": sorted(self.transposed)} if self.transposed else {}),
        }

    @classmethod
    def read(cls, block: Any, where: str) -> "Contents":
        """Read the block `quantization_config` of a config.json; `where` names it in errors.

        Raises:
            CheckpointError: not a block of ours, of a version that this package cannot read, or not understood.
        """
        if not is_ours(block):
            raise CheckpointError(f"{where}: quantization_config is none of eggs-ptp, so nothing is packed")
        if block.get("format") not in FORMATS:
            known = ", ".join(map(str, FORMATS))
            raise CheckpointError(
                f"{where}: packed format {block.get('format')}, this version reads formats {known}; update eggs-ptp"
            )
        matrices, ordered, values = block.get("matrices"), block.get("ordered", []), block.get("values", {})
        transposed = block.get("transposed", [])
        lists = isinstance(ordered, list) and isinstance(transposed, list)
        if not isinstance(matrices, dict) or not matrices or not lists:
            raise CheckpointError(f"{where}: quantization_config names no matrices")
        if not isinstance(values, dict) or (odd := [kind for kind in values.values() if kind not in GRIDS]):
            raise CheckpointError(
                f"{where}: quantization_config.values: expected {' or '.join(GRIDS)} for a matrix's "
                f"name, got {odd[0] if isinstance(values, dict) else values!r}"
            )
        for key, names in (("ordered", ordered), ("values", values), ("transposed", transposed)):
            if strangers := sorted(set(map(str, names)) - matrices.keys()):
                raise CheckpointError(f"{where}: quantization_config.{key}: {strangers[0]} is not one of its matrices")
        patterns = {name: _pattern(text, f"{where}: {name}") for name, text in matrices.items()}
        return cls(patterns, frozenset(ordered), values, frozenset(map(str, transposed)))

    def parts(self, name: str) -> tuple[str, ...]:
        """What a matrix consists of: the last parts of its tensors' names."""
        scales = ("scales",) if name in self.values else ()
        return ("values", "bits", *scales, *(("order",) if name in self.ordered else ()))

    def tensors(self, name: str) -> list[str]:
        """Names of the tensors that stand for the weight of a matrix."""
        return [f"{name}.{part}" for part in self.parts(name)]


def is_ours(block: object) -> bool:
    """Whether the block `quantization_config` of a config.json says that the folder is a packed one."""
    return isinstance(block, dict) and (METHOD in block or block.get("quant_method") == METHOD)


def _pattern(text: object, where: str) -> Pattern:
    try:
        pattern = parse_pattern(str(text))
    except PatternError as error:
        raise CheckpointError(f"{where}: {error}") from error
    if not isinstance(pattern, Pattern):
        raise CheckpointError(f"{where}: packed matrices are N:M, not {text}")
    return pattern
