"""JSON files of a model's folder, which may come from anyone."""

import json
import re
from collections.abc import Callable
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
        if path.exists() and not path.is_file():
            raise kind(f"{path}: cannot be read (it is no file)")  # a named pipe must not be waited for
        if (size := path.stat().st_size) > _LARGEST:
            raise kind(f"{path}: expected a JSON file of at most {_LARGEST} bytes, it has {size}")
        return parse_json(path.read_text(encoding="utf-8"))
    except JSON_FAULTS as error:
        raise kind(f"{path}: not valid JSON ({error})") from error
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror})") from error


def parse_json(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What JSON stands for; `pairs` makes objects of it, in the place of dictionaries.

    Raises:
        ValueError, RecursionError: it is none, or half of a surrogate pair is in it, which no file or screen takes.
    """
    found = json.loads(text, object_pairs_hook=pairs)
    if re.search(r"\\u[dD]", text):
        json.dumps(found, ensure_ascii=False).encode()
    return found
