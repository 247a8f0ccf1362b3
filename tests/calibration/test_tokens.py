import random
from types import SimpleNamespace

import pytest
import torch
from tiny import byte_tokenizer

from eggs_ptp.calibration import tokens
from eggs_ptp.calibration.tokens import begin_tokens, token_ids, tokenise
from eggs_ptp.demo.builtin import model_folder
from eggs_ptp.errors import CalibrationError
from eggs_ptp.models.load import load_tokenizer


def test_documents_are_joined_by_a_blank_line_and_tokenised_once(tokenizer):
    ids = tokenise(["w2 w3", "w4"], tokenizer)
    assert ids.tolist() == [0, 2, 3, 4]
    assert ids.dtype == torch.int64
    assert [call.text for call in tokenizer.calls] == ["w2 w3\n\nw4"]


def test_the_tokenizer_does_not_warn_of_long_texts(tokenizer):
    token_ids("w2", tokenizer)
    assert [call.verbose for call in tokenizer.calls] == [False]


@pytest.mark.parametrize("separator", ["\n\n", "\n", " "])
def test_long_texts_in_pieces_give_the_same_tokens_with_one_begin_token(tokenizer, monkeypatch, separator):
    words = [f"w{2 + index % 98}" for index in range(500)]
    text = separator.join(words)
    expected = tokenise([text], tokenizer)
    monkeypatch.setattr(tokens, "_MAX_CHARACTERS", 64)
    tokenizer.calls.clear()
    assert torch.equal(tokenise([text], tokenizer), expected)
    assert expected.numel() == 501
    pieces = [call.text for call in tokenizer.calls[2:]]
    assert len(pieces) > 20
    assert "".join(pieces) == text


def test_a_text_without_spaces_is_cut_anywhere(tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "_MAX_CHARACTERS", 10)
    assert tokenise(["x" * 25], tokenizer).tolist() == [0, 1, 1, 1]


def random_text(generator, count):
    """Return words, runs of blanks, and strings that tokenizers join across them."""
    strings = ("\n", "\n\n", " ", "   ", "w2", "w3's", "====", "\t", "é", "日本", "\r\n")
    return "".join(generator.choice(strings) for _ in range(count))


@pytest.mark.parametrize("seed", range(8))
def test_a_text_encoded_in_chunks_gives_the_same_tokens(monkeypatch, seed):
    tokenizer = load_tokenizer(model_folder())
    sizes = []

    def recorded(text, **options):
        sizes.append(len(text))
        return tokenizer(text, **options)

    text = random_text(random.Random(seed), 5000)  # noqa: S311
    expected = tokenise([text], tokenizer)
    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 400)
    assert torch.equal(tokenise([text], recorded), expected)
    assert len(sizes) > 20
    assert max(sizes) < len(text)


def test_a_text_that_every_cut_would_change_is_encoded_at_once(monkeypatch):
    def counts(text, *, add_special_tokens=True, verbose=True):
        return SimpleNamespace(input_ids=[*[0] * add_special_tokens, len(text), 7])

    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 10)
    assert tokenise(["a b c\nd " * 10], counts).tolist() == [0, 80, 7]


def test_special_tokens_inside_of_a_text_are_kept(monkeypatch):
    def between(text, *, add_special_tokens=True, verbose=True):
        ids = list(range(2, 2 + len(text.split())))
        return SimpleNamespace(input_ids=[number for i in ids for number in (i, 0)] if add_special_tokens else ids)

    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 4)
    assert tokenise(["a b c d e f"], between).tolist() == [2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0]


def test_an_end_token_is_added_after_the_last_piece(monkeypatch):
    def ends(text, *, add_special_tokens=True, verbose=True):
        ids = [2] * len(text.split())
        return SimpleNamespace(input_ids=[0, *ids, 9] if add_special_tokens else ids)

    monkeypatch.setattr(tokens, "_MAX_CHARACTERS", 8)
    assert tokenise(["a b c d e f g h"], ends).tolist() == [0, *[2] * 8, 9]


def test_special_tokens_inside_of_a_very_long_text_are_refused(monkeypatch):
    def between(text, *, add_special_tokens=True, verbose=True):
        ids = list(range(2, 2 + len(text.split())))
        return SimpleNamespace(input_ids=[number for i in ids for number in (i, 0)] if add_special_tokens else ids)

    monkeypatch.setattr(tokens, "_MAX_CHARACTERS", 8)
    with pytest.raises(CalibrationError, match="special tokens inside of a text"):
        tokenise(["a b c d e f g h"], between)


def test_the_begin_tokens_that_a_tokenizer_writes(tokenizer):
    def wrapped(before, after):
        def encode(text, *, add_special_tokens=True, verbose=True):
            ids = [7] * len(text)
            return {"input_ids": [*before, *ids, *after] if add_special_tokens else ids}

        return encode

    assert begin_tokens(tokenizer) == (0,)
    assert begin_tokens(wrapped([], [9])) == ()
    assert begin_tokens(wrapped([5, 6], [9])) == (5, 6)
    assert begin_tokens(wrapped([], [])) == ()


def test_begin_tokens_of_tokenizers_of_transformers(shared):
    assert begin_tokens(load_tokenizer(model_folder())) == (0,)
    assert begin_tokens(load_tokenizer(shared / "data/models/tinystories-656k")) == (1,)
    assert begin_tokens(byte_tokenizer()) == ()  # it has one, but does not write it


def test_a_text_with_a_begin_token_gets_no_second_one(tokenizer):
    assert token_ids("<s> w2 w3", tokenizer) == [0, 2, 3]
    assert tokenise(["<s> w2", "<s> w3"], tokenizer).tolist() == [0, 2, 0, 3]
    assert token_ids("w2 w2 w2", tokenizer) == [0, 2, 2, 2]
    assert token_ids("w2 w2 w2", tokenizer, special=False) == [2, 2, 2]


def test_a_long_text_with_a_begin_token_gets_no_second_one(tokenizer, monkeypatch):
    text = "<s> " + " ".join(f"w{2 + index % 98}" for index in range(300))
    expected = tokenise([text], tokenizer)
    monkeypatch.setattr(tokens, "CHUNK_CHARACTERS", 64)
    assert torch.equal(tokenise([text], tokenizer), expected)
    assert expected[:2].tolist() == [0, 2]
