"""Read JSON files of model folders, which are untrusted input."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eggs_ptp.errors import EggsError, ModelError

# What `json.loads` raises: ValueError if the text is not JSON, not UTF-8 or has an integer with too many digits;
# RecursionError if brackets are nested too deeply.
JSON_ERRORS = (ValueError, RecursionError)
_MAX_BYTES = 100_000_000  # the index of a model with a million tensors is about this large


def read_json(path: Path, error_class: type[EggsError] = ModelError) -> Any:
    """Read a JSON file.

    Args:
        path: The file to read.
        error_class: The exception to raise if that fails.

    Returns:
        The parsed value.

    Raises:
        EggsError: An `error_class`: the file cannot be read, is larger than 100 MB, or is not valid JSON.
    """
    try:
        if path.exists() and not path.is_file():
            raise error_class(f"{path}: cannot be read (it is not a file)")  # opening a named pipe would block
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise error_class(f"{path}: expected a JSON file of at most {_MAX_BYTES} bytes, got {size}")
        return parse_json(path.read_text(encoding="utf-8"))
    except JSON_ERRORS as error:
        raise error_class(f"{path}: not valid JSON ({error})") from error
    except OSError as error:
        raise error_class(f"{path}: cannot be read ({error.strerror})") from error


def parse_json(text: str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    r"""Parse JSON, and refuse unpaired surrogates such as "\ud800", which cannot be printed or written to a file.

    Args:
        text: The JSON document.
        object_pairs_hook: Called with the pairs of each object; its result replaces the dictionary.

    Returns:
        The parsed value.

    Raises:
        ValueError: The text is not JSON, or has an unpaired surrogate.
        RecursionError: Brackets are nested too deeply.
    """
    value = json.loads(text, object_pairs_hook=object_pairs_hook)
    if re.search(r"\\u[dD]", text):
        json.dumps(value, ensure_ascii=False).encode()
    return value
