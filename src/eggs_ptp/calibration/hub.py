"""Data sets of the Hugging Face hub to documents."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, overload

from eggs_ptp.calibration.documents import document_of
from eggs_ptp.calibration.tokens import Tokenizer
from eggs_ptp.errors import CalibrationError

C4: Final = "allenai/c4"
_C4_SHARDS: Final = {
    "train": "en/c4-train.00000-of-01024.json.gz",
    "validation": "en/c4-validation.00000-of-00008.json.gz",
}
FIRST: Final = 20_000
"""How many documents a stream is read for: some ten million tokens of C4."""


def is_hub_name(text: str) -> bool:
    """Whether it looks like `owner/name` or `owner/name:config` rather than a file."""
    suffix = re.search(r"\.[A-Za-z]\w*$", text)
    return suffix is None and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?", text) is not None


def hub_documents(
    name: str,
    *,
    whole: bool,
    split: str = "train",
    field: str = "text",
    tokenizer: Tokenizer | None = None,
    flag: str = "--calibration",
) -> Sequence[str]:
    """One split of a data set, `owner/name` or `owner/name:config`; of C4 the first English shard of the split.

    `whole` downloads it and reads a document when it is asked for; else the first 20,000 documents are streamed.
    `flag` is the option that takes a file instead, for messages.

    Raises:
        CalibrationError: `datasets` is not installed, or the hub or the data set cannot be reached.
    """
    remedy = f"pass {flag} FILE with a text of yours (.txt, .jsonl, .parquet)"
    try:
        import datasets
    except ImportError:
        raise CalibrationError(
            f"the text {name} is on the hub and needs the package 'datasets'; pip install datasets, or {remedy}"
        ) from None
    owner_and_name, _, config = name.partition(":")
    files = {"data_files": {split: _C4_SHARDS[split]}} if name == C4 else {}
    try:
        if not (whole and _is_cached(owner_and_name)):
            _check_reachable(owner_and_name)
        rows = datasets.load_dataset(owner_and_name, config or None, split=split, streaming=not whole, **files)
        rows = rows if whole else list(itertools.islice(rows, FIRST))
    except Exception as error:  # both libraries raise what their network layers raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CalibrationError(f"the text {name} cannot be read from the hub ({reason}); {remedy}") from error
    return _Documents(name, rows, field, tokenizer)


def _is_cached(name: str) -> bool:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}").is_dir()


def _check_reachable(name: str) -> None:
    # Without a network, datasets takes half a minute of retries to say so; this says it at once.
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=10)


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
