"""Documents to one stretch of tokens."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from eggs_ptp.errors import CalibrationError

_CHUNK: Final = 2**22  # characters: an encoding takes about a hundred bytes for each


class Tokenizer(Protocol):
    """What this package asks of a tokenizer; the tokenizers of transformers are such."""

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        """An object whose `input_ids` are the token ids of the text."""


def token_ids(text: str, tokenizer: Tokenizer, *, special: bool = True) -> list[int]:
    """The ids of one text, with the special tokens that the tokenizer puts around it by default."""
    # Not verbose: a text longer than the model's context is no mistake here, it is going to be cut.
    return list(tokenizer(text, add_special_tokens=special, verbose=False).input_ids)


def tokenise(documents: Iterable[str], tokenizer: Tokenizer) -> Tensor:
    """The documents joined by a blank line and tokenised once with the tokenizer's defaults, int64 (tokens,).

    A text of more than four million characters is tokenised piece by piece, cut after blank lines where there are
    any; special tokens stand around the whole only.

    Raises:
        CalibrationError: a long text, and a tokenizer that puts special tokens inside a text.
    """
    first, *rest = _pieces("\n\n".join(documents))
    ids = token_ids(first, tokenizer)
    if rest:
        before, inside, after = _parted(ids, token_ids(first, tokenizer, special=False))
        ids = [*before, *inside]
        for piece in rest:
            ids += token_ids(piece, tokenizer, special=False)
        ids += after
    return torch.tensor(ids, dtype=torch.int64)


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _CHUNK:
        end = start + _CHUNK
        cuts = (text.rfind(mark, start, end) + len(mark) for mark in ("\n\n", "\n", " "))
        cut = next((cut for cut in cuts if cut > start + _CHUNK // 2), end)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _parted(ids: Sequence[int], plain: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    for start in range(len(ids) - len(plain) + 1):
        end = start + len(plain)
        if list(ids[start:end]) == list(plain):
            return ids[:start], plain, ids[end:]
    raise CalibrationError(
        f"this tokenizer puts special tokens inside a text, so a text of more than {_CHUNK} characters cannot be "
        "tokenised in pieces; give a shorter text"
    )
