"""Draws windows of calibration tokens from documents."""

import hashlib
import importlib.util
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from eggs_ptp.calibration.documents import read_documents
from eggs_ptp.calibration.hub import C4, STREAMED_DOCUMENTS, hub_documents, is_hub_name
from eggs_ptp.calibration.tokens import CHUNK_CHARACTERS, ENCODING_BYTES, Tokenizer, begin_tokens, token_ids, tokenise
from eggs_ptp.core.seed import generator_for
from eggs_ptp.errors import CalibrationError

BUILTIN: Final = "the built-in text"
_BUILTIN_BYTES: Final = 200_000
_DOCUMENT_BYTES: Final = 2_500  # of a data set on the hub
_COMPRESSION: Final = 6  # size of a text divided by that of its compressed file
_BYTES_PER_BYTE: Final = 8  # memory per byte of text: two copies of it, and two of a quarter as many tokens, int64


class WindowSettings(Protocol):
    """Which windows to draw; the `[calibration]` table of a recipe has these attributes."""

    @property
    def text(self) -> str | None:
        """A file, a data set of the hub, or None for the default."""

    @property
    def nsamples(self) -> int:
        """Number of windows."""

    @property
    def seqlen(self) -> int | None:
        """Tokens of each window, or None for the default."""

    @property
    def sampling(self) -> str:
        """`packed` or `documents`."""

    @property
    def begin(self) -> str:
        """`auto`: every window begins with the begin token that the tokenizer writes, if any; or `never`."""

    @property
    def text_field(self) -> str:
        """Field of a data set's row that holds the text."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of calibration tokens, and where they come from.

    Attributes:
        tokens: Token ids, int64 (nsamples, seqlen).
        source: The text that they were drawn from.
        sampling: How: "packed" or "documents"; "given" if they were read from a file of token windows.
        documents: Number of documents of the text.
        text_tokens: Number of tokens that the windows were drawn from: those of the whole text for "packed", those of
            the documents that were tokenised for "documents", those of the file for "given".
        begin: The begin tokens that every window starts with; empty where windows start in mid-text, and for "given",
            where the file decides.
    """

    tokens: Tensor
    source: str
    sampling: str
    documents: int
    text_tokens: int
    begin: tuple[int, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the token ids, row by row, as little-endian int64."""
        return hashlib.sha256(self.tokens.cpu().numpy().astype("<i8").tobytes()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for records."""
        nsamples, seqlen = self.tokens.shape
        return {
            "source": self.source,
            "sampling": self.sampling,
            "nsamples": nsamples,
            "seqlen": seqlen,
            "documents": self.documents,
            "text_tokens": self.text_tokens,
            "begin_tokens": list(self.begin),
            "sha256": self.digest,
        }


def calibration_windows(
    settings: WindowSettings,
    tokenizer: Tokenizer | None,
    *,
    seqlen: int,
    seed: int,
    vocab_size: int,
    builtin: Sequence[str] | None = None,
) -> Windows:
    """Draw calibration windows, or read them from a file of token windows.

    With `begin` "auto", the first token of each window is replaced by the begin token that the tokenizer writes before
    a text, if it writes one: models that were trained with it need it. "never" is the rule of the papers' code.

    Args:
        settings: Which windows to draw. If `text` is a file of token windows, `nsamples`, `seqlen` and `begin` are
            ignored.
        tokenizer: The model's tokenizer; may be None for token windows.
        seqlen: Tokens of each window, unless `settings` says so.
        seed: Seed of the windows.
        vocab_size: Number of token ids of the model.
        builtin: Documents to draw from in place of `settings.text`; without either it is C4 from the hub.

    Raises:
        CalibrationError: The text is missing, unreadable or too short, or has tokens that the model does not have.
    """
    length = settings.seqlen or seqlen
    if settings.text is not None and is_token_file(settings.text):
        windows = _read_token_file(Path(settings.text))
    else:
        if tokenizer is None:
            raise CalibrationError(
                "the model has no tokenizer, so text cannot be turned into tokens; add its tokenizer files, or pass "
                "token windows (--calibration FILE.npy)"
            )
        source, documents = _documents(settings, tokenizer, builtin)
        if not documents:
            raise CalibrationError(f"{source} holds no documents; give a text with some")
        begin = begin_tokens(tokenizer) if settings.begin == "auto" else ()
        if len(begin) >= length:
            raise CalibrationError(
                f"seqlen: expected more than the tokenizer's {len(begin)} begin tokens, got windows of {length}; give "
                "a larger --seqlen"
            )
        draw = _draw_from_documents if settings.sampling == "documents" else _draw_packed
        windows = draw(source, documents, tokenizer, settings.nsamples, length, seed, begin)
    low, high = int(windows.tokens.min()), int(windows.tokens.max())
    if low < 0 or high >= vocab_size:
        raise CalibrationError(
            f"{windows.source}: token id {low if low < 0 else high} is outside the model's vocabulary of {vocab_size}; "
            "the tokens must come from the model's own tokenizer"
        )
    return windows


def is_token_file(text: str | None) -> bool:
    """Return whether the calibration text is a file of token windows."""
    return str(text).lower().endswith(".npy")


def tokenisation_bytes(text: str | None) -> int:
    """Estimate the memory, in bytes, for reading and tokenising a calibration text."""
    if is_token_file(text):
        return 0
    path = Path(text or "")
    size = STREAMED_DOCUMENTS * _DOCUMENT_BYTES if not text or is_hub_name(text) else _BUILTIN_BYTES
    if text and path.is_file():
        size = path.stat().st_size * (_COMPRESSION if path.suffix.lower() in (".gz", ".parquet") else 1)
    return _BYTES_PER_BYTE * size + ENCODING_BYTES * min(size, 2 * CHUNK_CHARACTERS)


def token_file_shape(path: Path) -> tuple[int, int]:
    """Return the number of windows in a file of token windows, and their length; only its header is read.

    Raises:
        CalibrationError: It is not such a file.
    """
    nsamples, seqlen = _open_token_file(path).shape
    return nsamples, seqlen


def consecutive_windows(tokens: Tensor, seqlen: int, limit: int | None = None, source: str = "the text") -> Tensor:
    """Return windows that follow each other without overlap; a tail that does not fill a window is dropped.

    Args:
        tokens: Token ids, (tokens,).
        seqlen: Tokens of each window.
        limit: Number of windows at most; None for all.
        source: What the tokens are, for the error message.

    Returns:
        (windows, seqlen).

    Raises:
        CalibrationError: There are fewer tokens than one window has.
    """
    _check_length(source, tokens.numel(), seqlen)
    windows = tokens[: tokens.numel() // seqlen * seqlen].view(-1, seqlen)
    return windows if limit is None else windows[:limit]


def check_source(text: str | None) -> None:
    """Refuse early what cannot be a calibration text. Whether a data set of the hub exists is not checked.

    Args:
        text: A file, a data set of the hub, or None for C4.

    Raises:
        CalibrationError: There is no such file, it is a folder, or the package that reads data sets is not installed.
    """
    name = C4 if text is None else text
    if Path(name).is_dir():
        raise CalibrationError(f"calibration.text: {name} is a folder, expected a file")
    if Path(name).exists():
        return
    if not is_hub_name(name) or Path(name).suffix:
        raise CalibrationError(
            f"calibration.text: there is no file {name}; data sets of the hub are named owner/name, such as {C4}"
        )
    if importlib.util.find_spec("datasets") is None:
        raise CalibrationError(
            f"calibration.text: {name} is a data set of the hub, which needs the package 'datasets' (pip install "
            "datasets); or pass --calibration FILE with a text (.txt, .jsonl, .parquet) or token windows (.npy)"
        )


def _documents(
    settings: WindowSettings, tokenizer: Tokenizer, builtin: Sequence[str] | None
) -> tuple[str, Sequence[str]]:
    """Return the text's name and its documents."""
    if builtin is not None:
        return BUILTIN, builtin
    name = C4 if settings.text is None else settings.text
    if settings.text is not None and (Path(name).exists() or not is_hub_name(name)):
        if not Path(name).exists() and not Path(name).suffix:
            raise CalibrationError(f"there is no file {name}; data sets of the hub are named owner/name, such as {C4}")
        return name, read_documents(name, field=settings.text_field, tokenizer=tokenizer)
    download = settings.sampling == "documents"
    documents = hub_documents(name, download=download, field=settings.text_field, tokenizer=tokenizer)
    if not download and len(documents) >= STREAMED_DOCUMENTS:
        name = f"{name}, first {STREAMED_DOCUMENTS} documents"
    return name, documents


def _draw_packed(
    source: str,
    documents: Sequence[str],
    tokenizer: Tokenizer,
    nsamples: int,
    seqlen: int,
    seed: int,
    begin: tuple[int, ...],
) -> Windows:
    """Draw windows that begin anywhere in the joined documents."""
    tokens = tokenise(documents, tokenizer)
    _check_length(source, tokens.numel(), seqlen)
    start_count = tokens.numel() - seqlen + 1
    starts = torch.randint(start_count, (nsamples,), generator=generator_for(seed, "calibration"))
    windows = torch.stack([_window(tokens, start, seqlen, begin) for start in starts.tolist()])
    return Windows(windows, source, "packed", len(documents), tokens.numel(), begin)


def _draw_from_documents(
    source: str,
    documents: Sequence[str],
    tokenizer: Tokenizer,
    nsamples: int,
    seqlen: int,
    seed: int,
    begin: tuple[int, ...],
) -> Windows:
    """Draw windows inside of documents, by the rule and the random numbers of the code of Wanda and RIA.

    Documents are drawn until one has more than `seqlen` tokens; the window begins uniformly in
    [0, tokens - seqlen - 1].
    """
    generator = random.Random(seed)  # noqa: S311 - the windows of the papers come from this generator
    ids_by_document: dict[int, list[int]] = {}
    windows: list[Tensor] = []
    long_documents = 0
    while len(windows) < nsamples:
        index = generator.randint(0, len(documents) - 1)
        if index not in ids_by_document:
            ids_by_document[index] = token_ids(documents[index], tokenizer)
            long_documents += len(ids_by_document[index]) > seqlen
        ids = ids_by_document[index]
        if len(ids) > seqlen:
            start = generator.randint(0, len(ids) - seqlen - 1)
            windows.append(_window(torch.tensor(ids, dtype=torch.int64), start, seqlen, begin))
        elif not long_documents and len(ids_by_document) == len(documents):
            longest = max(map(len, ids_by_document.values()))
            raise CalibrationError(
                f"{source}: none of the {len(documents)} documents is longer than a window of {seqlen} tokens, the "
                f"longest has {longest}; use sampling packed (--set calibration.sampling=packed) or a smaller --seqlen"
            )
    text_tokens = sum(map(len, ids_by_document.values()))
    return Windows(torch.stack(windows), source, "documents", len(documents), text_tokens, begin)


def _window(tokens: Tensor, start: int, seqlen: int, begin: tuple[int, ...]) -> Tensor:
    """Return the window that begins at `start`, with begin tokens in place of its first ones.

    Where the text that would follow has begin tokens itself, as a chat whose template writes them, a window nearby is
    taken, if possible the one that begins with these.

    Args:
        tokens: The text's tokens, (tokens,).
        start: Where the window begins.
        seqlen: Tokens of the window.
        begin: The begin tokens; empty for a window of nothing but text.

    Returns:
        (seqlen,).
    """
    if not begin:
        return tokens[start : start + seqlen]
    size = len(begin)
    last = len(tokens) - seqlen
    starts = itertools.chain([start, min(start + size, last)], range(start - 1, -1, -1))
    start = next((each for each in starts if tokens[each + size : each + 2 * size].tolist() != list(begin)), start)
    return torch.cat([torch.tensor(begin, dtype=tokens.dtype), tokens[start + size : start + seqlen]])


def _read_token_file(path: Path) -> Windows:
    array = _open_token_file(path)
    nsamples, seqlen = array.shape
    source = f"{path} ({nsamples} windows of {seqlen} token ids, in place of nsamples and seqlen)"
    return Windows(torch.from_numpy(array.astype(np.int64)), source, "given", 0, array.size)


def _open_token_file(path: Path) -> Any:
    """Map a file of token windows into memory; nothing but its header is read before it is accessed."""
    try:
        with np.errstate(over="raise"):  # a broken header may have a shape that overflows
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise CalibrationError(f"there is no file {path}; check the name") from None
    except (OSError, ValueError, TypeError, EOFError, MemoryError, ArithmeticError) as error:
        raise CalibrationError(f"{path} cannot be read as a NumPy array of token ids: {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.shape[0] or array.shape[1] < 2:
        shape = getattr(array, "shape", "several arrays")
        raise CalibrationError(f"{path}: expected token windows of shape (nsamples, seqlen), got {shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise CalibrationError(f"{path}: expected integer token ids, got {array.dtype}")
    return array


def _check_length(source: str, tokens: int, seqlen: int) -> None:
    if tokens < seqlen:
        raise CalibrationError(
            f"{source}: {tokens} tokens are fewer than one window of {seqlen}; give more text or a smaller --seqlen"
        )
