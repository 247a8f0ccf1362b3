"""Documents to token windows."""

import hashlib
import importlib.util
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
from eggs_ptp.calibration.hub import C4, FIRST, hub_documents, is_hub_name
from eggs_ptp.calibration.tokens import ENCODING, STEP, Tokenizer, token_ids, tokenise
from eggs_ptp.core.seed import generator_for
from eggs_ptp.errors import CalibrationError

BUILTIN: Final = "the built-in text"
_BUILTIN_BYTES: Final = 200_000
_DOCUMENT: Final = 2_500  # bytes, of a data set
_UNPACKED: Final = 6  # times as large as the file
_READ: Final = 8  # bytes for each of a text: it twice, and a quarter as many tokens, also twice


class Spec(Protocol):
    """What to calibrate on: the `[calibration]` table of a recipe is one."""

    @property
    def text(self) -> str | None:
        """A file, a data set of the hub, or None for the default."""

    @property
    def nsamples(self) -> int:
        """How many windows."""

    @property
    def seqlen(self) -> int | None:
        """Tokens in a window, or None for the default."""

    @property
    def sampling(self) -> str:
        """`packed` or `documents`."""

    @property
    def text_field(self) -> str:
        """Where rows of data sets have their text."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Calibration tokens, int64 [nsamples, seqlen], and where they come from.

    `text_tokens` counts the tokens that the windows were drawn from: those of the whole text when packed, those of
    the documents looked at for `documents`, those of the file for token windows (`sampling` is then `given`).
    """

    tokens: Tensor
    source: str
    sampling: str
    documents: int
    text_tokens: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the token ids, row after row, as little-endian int64."""
        return hashlib.sha256(self.tokens.cpu().numpy().astype("<i8").tobytes()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for records."""
        nsamples, seqlen = self.tokens.shape
        return {
            "source": self.source,
            "sampling": self.sampling,
            "nsamples": nsamples,
            "seqlen": seqlen,
            "documents": self.documents,
            "text_tokens": self.text_tokens,
            "sha256": self.digest,
        }


def calibration_windows(
    spec: Spec,
    tokenizer: Tokenizer | None,
    *,
    seqlen: int,
    seed: int,
    vocab_size: int,
    builtin: Sequence[str] | None = None,
) -> Windows:
    """Draw the windows that `spec` asks for; `seqlen` holds where it names none.

    The text is the documents `builtin` where they are given, else `spec.text`, else C4 from the hub. A tokenizer is
    not needed for `.npy` token windows, whose shape takes the place of `nsamples` and `seqlen`.

    Raises:
        CalibrationError: a text that is missing, unreadable or too short, or tokens that the model does not have.
    """
    length = spec.seqlen or seqlen
    if spec.text is not None and is_given(spec.text):
        windows = _given(Path(spec.text))
    else:
        if tokenizer is None:
            raise CalibrationError(
                "the model has no tokenizer, so text cannot be turned into tokens; add its tokenizer files, or pass "
                "token windows (--calibration FILE.npy)"
            )
        source, documents = _documents(spec, tokenizer, builtin)
        if not documents:
            raise CalibrationError(f"{source} holds no document; give a text with some")
        draw = _from_documents if spec.sampling == "documents" else _packed
        windows = draw(source, documents, tokenizer, spec.nsamples, length, seed)
    low, high = int(windows.tokens.min()), int(windows.tokens.max())
    if low < 0 or high >= vocab_size:
        raise CalibrationError(
            f"{windows.source}: token id {low if low < 0 else high} is outside the model's vocabulary of {vocab_size}; "
            "the tokens must come from the model's own tokenizer"
        )
    return windows


def is_given(text: str | None) -> bool:
    """Whether it names a file of token windows."""
    return str(text).lower().endswith(".npy")


def drawing_bytes(text: str | None) -> int:
    """About what it takes to read a text and turn it into tokens."""
    if is_given(text):
        return 0
    path = Path(text or "")
    size = FIRST * _DOCUMENT if not text or is_hub_name(text) else _BUILTIN_BYTES
    if text and path.is_file():
        size = path.stat().st_size * (_UNPACKED if path.suffix.lower() in (".gz", ".parquet") else 1)
    return _READ * size + ENCODING * min(size, 2 * STEP)


def given_shape(path: Path) -> tuple[int, int]:
    """How many token windows a file holds, and of how many tokens; only its header is read.

    Raises:
        CalibrationError: it holds anything else.
    """
    nsamples, seqlen = _array(path).shape
    return nsamples, seqlen


def consecutive_windows(tokens: Tensor, seqlen: int, limit: int | None = None, source: str = "the text") -> Tensor:
    """Windows one after the other without overlap, the tail dropped: (tokens,) -> [windows, seqlen].

    Raises:
        CalibrationError: fewer tokens than one window.
    """
    _check_length(source, tokens.numel(), seqlen)
    windows = tokens[: tokens.numel() // seqlen * seqlen].view(-1, seqlen)
    return windows if limit is None else windows[:limit]


def check_source(text: str | None) -> None:
    """Refuse early what cannot be a calibration text; whether the hub gives a data set shows when it is asked.

    Raises:
        CalibrationError: no such file, a folder, or a data set of the hub without the package that reads it.
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


def _documents(spec: Spec, tokenizer: Tokenizer, builtin: Sequence[str] | None) -> tuple[str, Sequence[str]]:
    if builtin is not None:
        return BUILTIN, builtin
    name = C4 if spec.text is None else spec.text
    if spec.text is not None and (Path(name).exists() or not is_hub_name(name)):
        if not Path(name).exists() and not Path(name).suffix:
            raise CalibrationError(f"there is no file {name}; data sets of the hub are named owner/name, such as {C4}")
        return name, read_documents(name, field=spec.text_field, tokenizer=tokenizer)
    whole = spec.sampling == "documents"
    found = hub_documents(name, whole=whole, field=spec.text_field, tokenizer=tokenizer)
    return name if whole or len(found) < FIRST else f"{name}, first {FIRST} documents", found


def _packed(
    source: str, documents: Sequence[str], tokenizer: Tokenizer, nsamples: int, seqlen: int, seed: int
) -> Windows:
    """Windows that begin anywhere in the joined documents."""
    tokens = tokenise(documents, tokenizer)
    _check_length(source, tokens.numel(), seqlen)
    begins = tokens.numel() - seqlen + 1
    starts = torch.randint(begins, (nsamples,), generator=generator_for(seed, "calibration"))
    return Windows(tokens.unfold(0, seqlen, 1)[starts], source, "packed", len(documents), tokens.numel())


def _from_documents(
    source: str, documents: Sequence[str], tokenizer: Tokenizer, nsamples: int, seqlen: int, seed: int
) -> Windows:
    """Windows inside documents longer than a window, by the rule and the random numbers of Wanda's and RIA's code.

    A document is drawn until one has more than `seqlen` tokens; the window begins uniformly in
    [0, tokens - seqlen - 1].
    """
    draw = random.Random(seed)  # noqa: S311 - the papers' windows come from this generator
    seen: dict[int, list[int]] = {}
    windows: list[list[int]] = []
    long = 0
    while len(windows) < nsamples:
        place = draw.randint(0, len(documents) - 1)
        if place not in seen:
            seen[place] = token_ids(documents[place], tokenizer)
            long += len(seen[place]) > seqlen
        ids = seen[place]
        if len(ids) > seqlen:
            start = draw.randint(0, len(ids) - seqlen - 1)
            windows.append(ids[start : start + seqlen])
        elif not long and len(seen) == len(documents):
            longest = max(map(len, seen.values()))
            raise CalibrationError(
                f"{source}: none of the {len(documents)} documents is longer than a window of {seqlen} tokens, the "
                f"longest has {longest}; use sampling packed (--set calibration.sampling=packed) or a smaller --seqlen"
            )
    text_tokens = sum(map(len, seen.values()))
    return Windows(torch.tensor(windows, dtype=torch.int64), source, "documents", len(documents), text_tokens)


def _given(path: Path) -> Windows:
    array = _array(path)
    nsamples, seqlen = array.shape
    source = f"{path} ({nsamples} windows of {seqlen} token ids, in place of nsamples and seqlen)"
    return Windows(torch.from_numpy(array.astype(np.int64)), source, "given", 0, array.size)


def _array(path: Path) -> Any:
    try:
        with np.errstate(over="raise"):  # a header may say any shape
            array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: nothing is read before it is asked for
    except FileNotFoundError:
        raise CalibrationError(f"there is no file {path}; check the name") from None
    except (OSError, ValueError, TypeError, EOFError, MemoryError, ArithmeticError) as error:
        raise CalibrationError(f"{path} cannot be read as a NumPy array of token ids: {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.shape[0] or array.shape[1] < 2:
        shape = getattr(array, "shape", "several arrays")
        raise CalibrationError(f"{path}: expected token windows of shape (nsamples, seqlen), came {shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise CalibrationError(f"{path}: expected integer token ids, came {array.dtype}")
    return array


def _check_length(source: str, tokens: int, seqlen: int) -> None:
    if tokens < seqlen:
        raise CalibrationError(
            f"{source}: {tokens} tokens are fewer than one window of {seqlen}; give more text or a smaller --seqlen"
        )
