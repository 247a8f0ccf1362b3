"""Tokenises documents into one sequence of tokens."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from eggs_ptp.errors import CalibrationError

ENCODING_BYTES: Final = 200  # memory that an encoding takes per character
CHUNK_CHARACTERS: Final = 2**15  # characters that are encoded at once, where that changes no token
_MAX_CHARACTERS: Final = 2**22  # characters that are encoded at once at most
_LOOKAHEAD: Final = 2**10  # characters after a cut that are encoded to check that the cut changes no token
_MOST_BEGIN_TOKENS: Final = 3  # that are looked for at the beginning of a text that may have them itself
_SAMPLE: Final = "a 0"  # a text that every tokenizer has tokens for
_CUTS: Final = re.compile(r"\n(?=\S)"), re.compile(r"(?<=\S)(?= \S)")  # where most tokenizers split a text


class Tokenizer(Protocol):
    """The part of a tokenizer's interface that is used here; those of transformers have it."""

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        """Return an object whose `input_ids` are the token ids of the text."""


def token_ids(text: str, tokenizer: Tokenizer, *, special: bool = True) -> list[int]:
    """Return the token ids of one text.

    A text that has the tokenizer's begin token itself, such as a chat whose template writes it, gets no second one.

    Args:
        text: The text.
        tokenizer: The tokenizer.
        special: Whether to include the special tokens that the tokenizer adds by default.
    """
    ids = _encode(text, tokenizer, special)
    sizes = range(1, _MOST_BEGIN_TOKENS + 1)
    if special and any(ids[:size] == ids[size : 2 * size] for size in sizes if len(ids) >= 2 * size):
        begin = list(begin_tokens(tokenizer))
        if begin and begin == ids[: len(begin)] == ids[len(begin) : 2 * len(begin)]:
            return ids[len(begin) :]
    return ids


def begin_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer writes before every text by default: one such as `<s>`, or none.

    Args:
        tokenizer: The tokenizer; that it has a begin token does not mean that it writes it.
    """
    ids, plain = _encode(_SAMPLE, tokenizer, True), _encode(_SAMPLE, tokenizer, False)
    special_tokens = _special_tokens(ids, plain) if plain else None
    return tuple(special_tokens[0]) if special_tokens else ()


def _encode(text: str, tokenizer: Tokenizer, special: bool) -> list[int]:
    # verbose=True would warn of texts longer than the model's context, but they are going to be cut into windows.
    encoding = tokenizer(text, add_special_tokens=special, verbose=False)
    return list(encoding["input_ids"] if isinstance(encoding, Mapping) else encoding.input_ids)


def tokenise(documents: Iterable[str], tokenizer: Tokenizer) -> Tensor:
    """Join documents by blank lines, and tokenise them once with the tokenizer's defaults.

    A text of more than four million characters is tokenised in pieces, cut after blank lines where there are any;
    special tokens are added to the beginning and the end of the whole text only. As encodings take much memory, shorter
    chunks are encoded where that changes no token.

    Args:
        documents: The documents.
        tokenizer: The tokenizer.

    Returns:
        Token ids, int64 (tokens,).

    Raises:
        CalibrationError: The text is longer than four million characters, and the tokenizer adds special tokens inside
            of a text.
    """
    text = "\n\n".join(documents)
    if len(text) <= min(_MAX_CHARACTERS, 2 * CHUNK_CHARACTERS):
        return torch.tensor(token_ids(text, tokenizer), dtype=torch.int64)
    sample = text[: min(_MAX_CHARACTERS, CHUNK_CHARACTERS)]
    special_tokens = _special_tokens(token_ids(sample, tokenizer), token_ids(sample, tokenizer, special=False))
    if special_tokens is None and len(text) <= _MAX_CHARACTERS:
        return torch.tensor(token_ids(text, tokenizer), dtype=torch.int64)
    if special_tokens is None:
        raise CalibrationError(
            f"this tokenizer adds special tokens inside of a text, so a text of more than {_MAX_CHARACTERS} characters "
            "cannot be tokenised in pieces; give a shorter text"
        )
    begin, end = ([ids] for ids in special_tokens)
    inner = (ids for piece in _pieces(text) for ids in _chunk_ids(piece, tokenizer))
    return torch.cat([torch.tensor(ids, dtype=torch.int64) for ids in chain(begin, inner, end)])


def _pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most `_MAX_CHARACTERS`: after a blank line, a line or a word, if it has any."""
    start = 0
    while len(text) - start > _MAX_CHARACTERS:
        end = start + _MAX_CHARACTERS
        cuts = (text.rfind(separator, start, end) + len(separator) for separator in ("\n\n", "\n", " "))
        cut = next((cut for cut in cuts if cut > start + _MAX_CHARACTERS // 2), end)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _chunk_ids(text: str, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield the token ids of a text without special tokens, chunk by chunk; the same as if it were encoded at once.

    The text is cut only where what follows is encoded in the same way with and without what precedes it.
    """
    start = 0
    was_cut = True
    while was_cut and len(text) - start > 2 * CHUNK_CHARACTERS:
        was_cut = False
        for pattern in _CUTS:
            matches = [*pattern.finditer(text, start + CHUNK_CHARACTERS // 2, start + CHUNK_CHARACTERS)]
            if not matches:
                continue
            cut = matches[-1].end()
            lookahead = text[cut : cut + _LOOKAHEAD]
            joint_ids = token_ids(text[start:cut] + lookahead, tokenizer, special=False)
            lookahead_ids = token_ids(lookahead, tokenizer, special=False)
            if lookahead_ids and joint_ids[-len(lookahead_ids) :] == lookahead_ids:
                yield joint_ids[: -len(lookahead_ids)]
                start = cut
                was_cut = True
                break
    yield token_ids(text[start:], tokenizer, special=False)


def _special_tokens(ids: list[int], plain: list[int]) -> tuple[list[int], list[int]] | None:
    """Return the special tokens before and after a text; None if there are some inside of it.

    Args:
        ids: The text's tokens with special tokens.
        plain: The text's tokens without special tokens.
    """
    for start in range(len(ids) - len(plain) + 1):
        end = start + len(plain)
        if ids[start:end] == plain:
            return ids[:start], ids[end:]
    return None
