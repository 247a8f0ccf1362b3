"""Data sets of the Hugging Face hub to documents."""

import itertools
import re
from collections.abc import Sequence
from typing import Any, Final, overload

from eggs_ptp.calibration.documents import document_of
from eggs_ptp.calibration.tokens import Tokenizer
from eggs_ptp.errors import CalibrationError

C4: Final = "allenai/c4"
_C4_SHARD: Final = "en/c4-train.00000-of-01024.json.gz"
FIRST: Final = 20_000
"""How many documents a stream is read for: some ten million tokens of C4."""
_REMEDY: Final = "pass --calibration FILE with a text of yours (.txt, .jsonl, .parquet) or token windows (.npy)"


def is_hub_name(text: str) -> bool:
    """Whether it looks like `owner/name` or `owner/name:config` rather than a file."""
    suffix = re.search(r"\.[A-Za-z]\w*$", text)
    return suffix is None and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?", text) is not None


def hub_documents(name: str, *, whole: bool, field: str = "text", tokenizer: Tokenizer | None = None) -> Sequence[str]:
    """The train split of a data set, `owner/name` or `owner/name:config`; of C4 the first English shard.

    `whole` downloads it and reads a document when it is asked for; else the first 20,000 documents are streamed.

    Raises:
        CalibrationError: `datasets` is not installed, or the hub or the data set cannot be reached.
    """
    try:
        import datasets
    except ImportError:
        raise CalibrationError(
            f"calibration text {name} is on the hub and needs the package 'datasets'; "
            f"pip install 'eggs-ptp[data]', or {_REMEDY}"
        ) from None
    owner_and_name, _, config = name.partition(":")
    files = {"data_files": {"train": _C4_SHARD}} if name == C4 else {}
    try:
        if not whole:
            # datasets takes half a minute of retries to find that there is no network; this takes one try.
            from huggingface_hub import HfApi

            HfApi().dataset_info(owner_and_name, timeout=10)
        rows = datasets.load_dataset(owner_and_name, config or None, split="train", streaming=not whole, **files)
        found = _Documents(name, rows if whole else list(itertools.islice(rows, FIRST)), field, tokenizer)
        if found:
            found[0]
    except CalibrationError:
        raise
    except Exception as error:  # both libraries raise what their network layers raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CalibrationError(f"calibration text {name} cannot be read from the hub ({reason}); {_REMEDY}") from error
    return found


class _Documents(Sequence[str]):
    def __init__(self, name: str, rows: Any, field: str, tokenizer: Tokenizer | None) -> None:
        self._name, self._rows, self._field, self._tokenizer = name, rows, field, tokenizer

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        return document_of(f"{self._name}, row {place + 1}", self._rows[place], self._field, self._tokenizer)
