import random
from types import SimpleNamespace

import pytest
import torch

from eggs_ptp.calibration import tokens
from eggs_ptp.calibration.tokens import token_ids, tokenise
from eggs_ptp.demo.builtin import model_folder
from eggs_ptp.errors import CalibrationError
from eggs_ptp.models.load import load_tokenizer


def test_documents_are_joined_by_a_blank_line_and_tokenised_once(tokenizer):
    found = tokenise(["w2 w3", "w4"], tokenizer)
    assert found.tolist() == [0, 2, 3, 4]
    assert found.dtype == torch.int64
    assert [call.text for call in tokenizer.calls] == ["w2 w3\n\nw4"]


def test_the_tokenizer_is_told_not_to_complain_of_long_texts(tokenizer):
    token_ids("w2", tokenizer)
    assert [call.verbose for call in tokenizer.calls] == [False]


@pytest.mark.parametrize("separator", ["\n\n", "\n", " "])
def test_long_texts_in_pieces_are_the_same_tokens_with_one_begin(tokenizer, monkeypatch, separator):
    words = [f"w{2 + index % 98}" for index in range(500)]
    text = separator.join(words)
    whole = tokenise([text], tokenizer)
    monkeypatch.setattr(tokens, "_CHUNK", 64)
    tokenizer.calls.clear()
    assert torch.equal(tokenise([text], tokenizer), whole)
    assert whole.numel() == 501
    pieces = [call.text for call in tokenizer.calls[2:]]
    assert len(pieces) > 20
    assert "".join(pieces) == text


def test_a_text_without_any_space_is_cut_all_the_same(tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK", 10)
    assert tokenise(["x" * 25], tokenizer).tolist() == [0, 1, 1, 1]


def lines_of(draw, count):
    """Words, runs of blanks, and what tokenizers join across them."""
    parts = ("\n", "\n\n", " ", "   ", "w2", "w3's", "====", "\t", "é", "日本", "\r\n")
    return "".join(draw.choice(parts) for _ in range(count))


@pytest.mark.parametrize("seed", range(8))
def test_a_text_encoded_some_characters_at_a_time_is_the_same_tokens(monkeypatch, seed):
    inner, sizes = load_tokenizer(model_folder()), []

    def watched(text, **how):
        sizes.append(len(text))
        return inner(text, **how)

    text = lines_of(random.Random(seed), 5000)  # noqa: S311
    whole = tokenise([text], inner)
    monkeypatch.setattr(tokens, "STEP", 400)
    assert torch.equal(tokenise([text], watched), whole)
    assert len(sizes) > 20
    assert max(sizes) < len(text)


def test_what_no_cut_leaves_as_it_is_is_encoded_at_once(monkeypatch):
    def counts(text, *, add_special_tokens=True, verbose=True):
        return SimpleNamespace(input_ids=[*[0] * add_special_tokens, len(text), 7])

    monkeypatch.setattr(tokens, "STEP", 10)
    assert tokenise(["a b c\nd " * 10], counts).tolist() == [0, 80, 7]


def test_special_tokens_inside_a_text_of_some_length_are_kept(monkeypatch):
    def between(text, *, add_special_tokens=True, verbose=True):
        ids = list(range(2, 2 + len(text.split())))
        return SimpleNamespace(input_ids=[number for i in ids for number in (i, 0)] if add_special_tokens else ids)

    monkeypatch.setattr(tokens, "STEP", 4)
    assert tokenise(["a b c d e f"], between).tolist() == [2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0]


def test_an_end_token_stands_after_the_last_piece(monkeypatch):
    def ends(text, *, add_special_tokens=True, verbose=True):
        ids = [2] * len(text.split())
        return SimpleNamespace(input_ids=[0, *ids, 9] if add_special_tokens else ids)

    monkeypatch.setattr(tokens, "_CHUNK", 8)
    assert tokenise(["a b c d e f g h"], ends).tolist() == [0, *[2] * 8, 9]


def test_special_tokens_inside_a_long_text_are_refused(monkeypatch):
    def between(text, *, add_special_tokens=True, verbose=True):
        ids = list(range(2, 2 + len(text.split())))
        return SimpleNamespace(input_ids=[number for i in ids for number in (i, 0)] if add_special_tokens else ids)

    monkeypatch.setattr(tokens, "_CHUNK", 8)
    with pytest.raises(CalibrationError, match="special tokens inside a text"):
        tokenise(["a b c d e f g h"], between)
