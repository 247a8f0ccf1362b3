"""JSON files of a model's folder, which may come from anyone."""

import json
from pathlib import Path
from typing import Any

from eggs_ptp.errors import EggsError, ModelError

# What reading JSON raises: no JSON, no UTF-8 or a number of too many digits; and too many brackets.
JSON_FAULTS = (ValueError, RecursionError)
_LARGEST = 100_000_000  # bytes: an index of a million tensors has as many


def read_json(path: Path, kind: type[EggsError] = ModelError) -> Any:
    """Read a JSON file.

    Raises:
        EggsError: of this `kind`; it cannot be read, is larger than 100 MB, or is not valid JSON.
    """
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise kind(f"{path}: expected a JSON file of at most {_LARGEST} bytes, it has {size}")
        return json.loads(path.read_text(encoding="utf-8"))
    except JSON_FAULTS as error:
        raise kind(f"{path}: not valid JSON ({error})") from error
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror})") from error
