"""Documents to one stretch of tokens."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from eggs_ptp.errors import CalibrationError

ENCODING: Final = 200  # bytes that an encoding takes for each character
STEP: Final = 2**15  # characters that are encoded at once where that changes no token
_CHUNK: Final = 2**22  # characters that are encoded at once at most
_BESIDE: Final = 2**10  # characters behind a cut with which it is tried
_CUTS: Final = re.compile(r"\n(?=\S)"), re.compile(r"(?<=\S)(?= \S)")  # where most tokenizers part a text


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
    any; special tokens stand around the whole only. Encodings take much memory, so pieces are smaller where that
    changes no token.

    Raises:
        CalibrationError: a long text, and a tokenizer that puts special tokens inside a text.
    """
    text = "\n\n".join(documents)
    if len(text) <= min(_CHUNK, 2 * STEP):
        return torch.tensor(token_ids(text, tokenizer), dtype=torch.int64)
    sample = text[: min(_CHUNK, STEP)]
    around = _around(token_ids(sample, tokenizer), token_ids(sample, tokenizer, special=False))
    if around is None and len(text) <= _CHUNK:
        return torch.tensor(token_ids(text, tokenizer), dtype=torch.int64)
    if around is None:
        raise CalibrationError(
            f"this tokenizer puts special tokens inside a text, so a text of more than {_CHUNK} characters cannot be "
            "tokenised in pieces; give a shorter text"
        )
    before, after = ([ids] for ids in around)
    inside = (ids for piece in _pieces(text) for ids in _steps(piece, tokenizer))
    return torch.cat([torch.tensor(ids, dtype=torch.int64) for ids in chain(before, inside, after)])


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _CHUNK:
        end = start + _CHUNK
        cuts = (text.rfind(mark, start, end) + len(mark) for mark in ("\n\n", "\n", " "))
        cut = next((cut for cut in cuts if cut > start + _CHUNK // 2), end)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _steps(text: str, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids of a text without special tokens, some characters at a time, as they are where it is encoded at once.

    A text is cut only where what follows is encoded as it is by itself.
    """
    start, tried = 0, True
    while tried and len(text) - start > 2 * STEP:
        tried = False
        places = [[*mark.finditer(text, start + STEP // 2, start + STEP)][-1:] for mark in _CUTS]
        for cut in (place.end() for found in places for place in found):
            beside = text[cut : cut + _BESIDE]
            both, own = (token_ids(part, tokenizer, special=False) for part in (text[start:cut] + beside, beside))
            if own and both[-len(own) :] == own:
                yield both[: -len(own)]
                start, tried = cut, True
                break
    yield token_ids(text[start:], tokenizer, special=False)


def _around(ids: list[int], plain: list[int]) -> tuple[list[int], list[int]] | None:
    """Special tokens before and behind the others; None where some are between them."""
    for start in range(len(ids) - len(plain) + 1):
        end = start + len(plain)
        if ids[start:end] == plain:
            return ids[:start], ids[end:]
    return None
