"""Reads documents from data sets of the Hugging Face hub."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, overload

from eggs_ptp.calibration.documents import document_of, without_nulls
from eggs_ptp.calibration.tokens import Tokenizer
from eggs_ptp.errors import CalibrationError

C4: Final = "allenai/c4"
_C4_SHARDS: Final = {
    "train": "en/c4-train.00000-of-01024.json.gz",
    "validation": "en/c4-validation.00000-of-00008.json.gz",
}
STREAMED_DOCUMENTS: Final = 20_000
"""Number of documents that are read from a stream: about ten million tokens of C4."""


def is_hub_name(text: str) -> bool:
    """Return whether a text looks like `owner/name` or `owner/name:config` rather than a file."""
    suffix = re.search(r"\.[A-Za-z]\w*$", text)
    return suffix is None and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?", text) is not None


def hub_documents(
    name: str,
    *,
    download: bool,
    split: str = "train",
    field: str = "text",
    tokenizer: Tokenizer | None = None,
    flag: str = "--calibration",
) -> Sequence[str]:
    """Return the documents of a data set's split; of C4, those of the split's first English shard.

    Args:
        name: `owner/name` or `owner/name:config`.
        download: Whether to download the whole split and read each document when it is accessed. Otherwise the first
            20,000 documents are streamed.
        split: The split.
        field: Field of a row that holds its text.
        tokenizer: The tokenizer whose chat template renders chats.
        flag: The command-line option that takes a file instead, for error messages.

    Raises:
        CalibrationError: `datasets` is not installed, or the hub or the data set cannot be reached.
    """
    remedy = f"pass {flag} FILE with a text of your own (.txt, .jsonl, .parquet)"
    try:
        import datasets
    except ImportError:
        raise CalibrationError(
            f"the text {name} is on the hub and needs the package 'datasets'; pip install datasets, or {remedy}"
        ) from None
    owner_and_name, _, config = name.partition(":")
    files = {"data_files": {split: _C4_SHARDS[split]}} if name == C4 else {}
    try:
        if not (download and _is_cached(owner_and_name)):
            _check_reachable(owner_and_name)
        rows = datasets.load_dataset(owner_and_name, config or None, split=split, streaming=not download, **files)
        if not download:
            rows = list(itertools.islice(rows, STREAMED_DOCUMENTS))
    except Exception as error:  # both libraries let errors of their network layers through
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CalibrationError(f"the text {name} cannot be read from the hub ({reason}); {remedy}") from error
    return _Documents(name, rows, field, tokenizer)


def hub_problem(name: str) -> str | None:
    """Return why a data set of the hub cannot be read now; None if it can be, or is cached.

    Args:
        name: `owner/name` or `owner/name:config`.
    """
    owner_and_name = name.partition(":")[0]
    if _is_cached(owner_and_name):
        return None
    try:
        _check_reachable(owner_and_name)
    except Exception as error:  # the library lets errors of its network layer through
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _is_cached(name: str) -> bool:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}").is_dir()


def _check_reachable(name: str) -> None:
    # Without a network, datasets retries for half a minute before it raises; this raises at once.
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=10)


class _Documents(Sequence[str]):
    """Rows of a data set as documents, each made when it is accessed."""

    def __init__(self, name: str, rows: Any, field: str, tokenizer: Tokenizer | None) -> None:
        self._name = name
        self._rows = rows
        self._field = field
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = without_nulls(self._rows[index])
        return document_of(f"{self._name}, row {index + 1}", row, self._field, self._tokenizer)
