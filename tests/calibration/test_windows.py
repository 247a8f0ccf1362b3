# ruff: noqa: S311 - the papers' windows come from this generator
import hashlib
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from eggs_ptp.calibration import windows as module
from eggs_ptp.calibration.windows import calibration_windows, consecutive_windows, token_file_shape
from eggs_ptp.core.seed import generator_for
from eggs_ptp.errors import CalibrationError
from eggs_ptp.recipe.recipe import CalibrationSpec

LONG = 40
SHORT = 5


@pytest.fixture
def texts():
    generator = random.Random(7)
    sizes = [SHORT, LONG, SHORT, LONG + 9, 8, LONG + 3]
    return [" ".join(f"w{generator.randint(2, 99)}" for _ in range(size)) for size in sizes]


@pytest.fixture
def file(tmp_path, texts):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def drawn(tokenizer, builtin=None, *, seqlen=16, seed=0, vocab_size=100, **settings):
    return calibration_windows(
        CalibrationSpec(**settings), tokenizer, seqlen=seqlen, seed=seed, vocab_size=vocab_size, builtin=builtin
    )


def refusal(*args, **options):
    with pytest.raises(CalibrationError) as caught:
        drawn(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_packed_windows_are_parts_of_the_joined_text(tokenizer, texts, file):
    windows = drawn(tokenizer, text=file, nsamples=9, begin="never")
    tokens = [0, *(int(word[1:]) for text in texts for word in text.split())]
    starts = torch.randint(len(tokens) - 16 + 1, (9,), generator=generator_for(0, "calibration"))
    assert windows.tokens.tolist() == [tokens[start : start + 16] for start in starts.tolist()]
    assert windows.tokens.dtype == torch.int64
    assert (windows.sampling, windows.documents, windows.text_tokens) == ("packed", len(texts), len(tokens))
    assert windows.source == file


def test_every_start_can_be_drawn(tokenizer, file):
    windows = drawn(tokenizer, ["w2 w3 w4 w5"], seqlen=3, nsamples=60, begin="never")
    assert {tuple(window) for window in windows.tokens.tolist()} == {(0, 2, 3), (2, 3, 4), (3, 4, 5)}


def test_a_text_of_just_one_window(tokenizer):
    assert drawn(tokenizer, ["w2 w3"], seqlen=3, nsamples=1).tokens.tolist() == [[0, 2, 3]]


def test_windows_depend_on_the_seed(tokenizer, file):
    first, again, other = (drawn(tokenizer, text=file, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert first.digest == again.digest != other.digest


def test_the_settings_seqlen_overrides_the_default(tokenizer, file):
    assert drawn(tokenizer, text=file, seqlen=16, nsamples=3).tokens.shape == (3, 16)
    settings = CalibrationSpec(text=file, seqlen=7, nsamples=3)
    assert calibration_windows(settings, tokenizer, seqlen=16, seed=0, vocab_size=100).tokens.shape == (3, 7)


def test_documents_follow_the_papers_rule(tokenizer, texts, file):
    windows = drawn(tokenizer, text=file, sampling="documents", nsamples=20, seqlen=LONG, seed=3, begin="never")
    random.seed(3)
    expected = []
    for _ in range(20):
        while True:
            ids = tokenizer(texts[random.randint(0, len(texts) - 1)]).input_ids
            if len(ids) > LONG:
                break
        start = random.randint(0, len(ids) - LONG - 1)
        expected.append(ids[start : start + LONG])
    assert windows.tokens.tolist() == expected
    assert (windows.sampling, windows.documents) == ("documents", len(texts))
    assert windows.text_tokens == sum(len(tokenizer(text).input_ids) for text in texts)


def test_documents_leave_the_process_s_random_numbers_alone(tokenizer, file):
    random.seed(5)
    state = random.getstate()
    drawn(tokenizer, text=file, sampling="documents")
    assert random.getstate() == state


def test_documents_that_are_all_shorter_than_a_window(tokenizer, texts, file):
    longest = LONG + 10
    assert refusal(tokenizer, text=file, sampling="documents", seqlen=longest) == (
        f"{file}: none of the 6 documents is longer than a window of {longest} tokens, the longest has {longest}; use "
        "sampling packed (--set calibration.sampling=packed) or a smaller --seqlen"
    )
    assert drawn(tokenizer, text=file, sampling="documents", seqlen=longest - 1).tokens.shape[1] == longest - 1


def test_fewer_tokens_than_one_window(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("w2 w3")
    assert refusal(tokenizer, text=str(path), seqlen=4) == (
        f"{path}: 3 tokens are fewer than one window of 4; give more text or a smaller --seqlen"
    )


def test_the_builtin_text_is_used_where_it_is_given(tokenizer):
    for text in (None, "demo"):
        windows = drawn(tokenizer, ["w2 w3", "w4"], text=text, seqlen=4, nsamples=1)
        assert windows.tokens.tolist() == [[0, 2, 3, 4]]
        assert (windows.source, windows.documents) == ("the built-in text", 2)
    assert refusal(tokenizer, []) == "the built-in text holds no documents; give a text with some"


@pytest.mark.parametrize(
    ("settings", "name", "download"),
    [
        ({}, "allenai/c4", False),
        ({"sampling": "documents"}, "allenai/c4", True),
        ({"text": "owner/set"}, "owner/set", False),
    ],
)
def test_other_texts_come_from_the_hub(tokenizer, texts, monkeypatch, settings, name, download):
    requests = []

    def hub_documents(name, **options):
        requests.append((name, options["download"], options["field"]))
        return texts

    monkeypatch.setattr(module, "hub_documents", hub_documents)
    assert drawn(tokenizer, **settings).source == name
    assert requests == [(name, download, "text")]


def test_the_source_says_how_much_of_a_stream_was_read(tokenizer, texts, monkeypatch):
    monkeypatch.setattr(module, "hub_documents", lambda name, **options: texts)
    monkeypatch.setattr(module, "STREAMED_DOCUMENTS", len(texts))
    assert drawn(tokenizer).source == "allenai/c4, first 6 documents"


def test_a_file_is_preferred_to_a_data_set_of_the_same_name(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "set").write_text("w2 w3 w4")
    assert drawn(tokenizer, text="owner/set", seqlen=3).source == "owner/set"


def test_names_that_are_neither_a_file_nor_a_data_set(tokenizer):
    assert refusal(tokenizer, text="c4") == (
        "there is no file c4; data sets of the hub are named owner/name, such as allenai/c4"
    )
    assert refusal(tokenizer, text="data/no.jsonl") == "there is no file data/no.jsonl; check the name"


def test_a_model_without_a_tokenizer(file):
    assert refusal(None, text=file).startswith("the model has no tokenizer, so text cannot be turned into tokens")


def test_tokens_that_the_model_does_not_have(tokenizer, file):
    assert refusal(tokenizer, ["w2 w99 w3"], vocab_size=99, seqlen=4) == (
        "the built-in text: token id 99 is outside the model's vocabulary of 99; "
        "the tokens must come from the model's own tokenizer"
    )


def saved(tmp_path, array):
    np.save(tmp_path / "ids.npy", array)
    return str(tmp_path / "ids.npy")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_token_windows_replace_nsamples_and_seqlen(tmp_path, dtype):
    array = np.arange(12, dtype=dtype).reshape(3, 4)
    path = saved(tmp_path, array)
    windows = drawn(None, text=path, nsamples=7, seqlen=2)
    assert windows.tokens.tolist() == array.tolist()
    assert windows.source == f"{path} (3 windows of 4 token ids, in place of nsamples and seqlen)"
    assert (windows.sampling, windows.documents, windows.text_tokens) == ("given", 0, 12)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4, int), "expected token windows of shape (nsamples, seqlen), got (4,)"),
        (np.zeros((0, 4), int), "expected token windows of shape (nsamples, seqlen), got (0, 4)"),
        (np.zeros((4, 1), int), "expected token windows of shape (nsamples, seqlen), got (4, 1)"),
        (np.zeros((2, 3, 4), int), "expected token windows of shape (nsamples, seqlen), got (2, 3, 4)"),
        (np.zeros((2, 3)), "expected integer token ids, got float64"),
        (np.zeros((2, 3), bool), "expected integer token ids, got bool"),
    ],
)
def test_arrays_that_are_not_token_windows(tmp_path, array, message):
    path = saved(tmp_path, array)
    assert refusal(None, text=path) == f"{path}: {message}"


def test_the_shape_is_read_from_the_header_and_checked_against_the_size(tmp_path):
    path = Path(saved(tmp_path, np.zeros((3, 4), int)))
    assert token_file_shape(path) == (3, 4)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CalibrationError, match="cannot be read as a NumPy array of token ids"):
        token_file_shape(path)


@pytest.mark.parametrize("shape", [(2**62, 4), (2**63, 4), (True, 4)])
def test_impossible_shapes(tmp_path, shape):
    path = tmp_path / "ids.npy"
    with path.open("wb") as file:
        header = {"descr": "<i8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
    assert refusal(None, text=str(path)).startswith(f"{path} cannot be read as a NumPy array of token ids: ")


@pytest.mark.parametrize("bad", [-1, 100])
def test_token_windows_outside_the_vocabulary(tmp_path, bad):
    path = saved(tmp_path, np.array([[0, bad], [1, 2]]))
    assert f"token id {bad} is outside the model's vocabulary of 100" in refusal(None, text=path)


@pytest.mark.parametrize("content", [b"", b"[[1, 2]]"])
def test_files_that_are_not_arrays(tmp_path, content):
    path = tmp_path / "ids.npy"
    path.write_bytes(content)
    assert refusal(None, text=str(path)).startswith(f"{path} cannot be read as a NumPy array of token ids: ")


def test_pickled_arrays_are_not_opened(tmp_path):
    path = saved(tmp_path, np.array([[1, "a"]], dtype=object))
    assert refusal(None, text=path).startswith(f"{path} cannot be read as a NumPy array of token ids: Array can't")


def test_a_missing_array(tmp_path):
    assert refusal(None, text=str(tmp_path / "no.npy")) == f"there is no file {tmp_path / 'no.npy'}; check the name"


def test_records(tmp_path):
    windows = drawn(None, text=saved(tmp_path, np.array([[1, 2, 3], [4, 5, 6]])))
    digest = hashlib.sha256(b"".join(number.to_bytes(8, "little") for number in range(1, 7))).hexdigest()
    assert windows.to_dict() == {
        "source": windows.source,
        "sampling": "given",
        "nsamples": 2,
        "seqlen": 3,
        "documents": 0,
        "text_tokens": 6,
        "begin_tokens": [],
        "sha256": digest,
    }


@pytest.mark.parametrize("sampling", ["packed", "documents"])
def test_every_window_begins_with_the_begin_token_in_place_of_its_first(tokenizer, file, sampling):
    with_begin, without = (
        drawn(tokenizer, text=file, sampling=sampling, nsamples=30, begin=begin) for begin in ("auto", "never")
    )
    assert with_begin.tokens[:, 0].tolist() == [0] * 30
    assert torch.equal(with_begin.tokens[:, 1:], without.tokens[:, 1:])
    assert (without.tokens[:, 0] != 0).any()
    assert with_begin.begin == (0,)
    assert without.begin == ()
    assert with_begin.to_dict()["begin_tokens"] == [0]
    assert with_begin.digest != without.digest


def test_begin_tokens_are_the_default(tokenizer, file):
    assert torch.equal(drawn(tokenizer, text=file).tokens, drawn(tokenizer, text=file, begin="auto").tokens)


class Plain:
    """A tokenizer that has a begin token and does not write it."""

    bos_token_id = 0

    def __call__(self, text, *, add_special_tokens=True, verbose=True):
        return {"input_ids": [int(word[1:]) for word in text.split() if word[1:].isdigit()]}


@pytest.mark.parametrize("sampling", ["packed", "documents"])
def test_a_tokenizer_that_writes_no_begin_token_gives_the_same_windows_as_ever(file, sampling):
    auto, never = (drawn(Plain(), text=file, sampling=sampling, begin=begin) for begin in ("auto", "never"))
    assert torch.equal(auto.tokens, never.tokens)
    assert (auto.begin, never.begin) == ((), ())


class TwoBegin(Plain):
    """A tokenizer that writes two tokens before every text, as GLM's does, and one after it."""

    def __call__(self, text, *, add_special_tokens=True, verbose=True):
        ids = [int(word[1:]) for word in text.split()] if "w" in text else [50] * len(text.split())
        return {"input_ids": [900, 901, *ids, 902] if add_special_tokens else ids}


def test_two_begin_tokens(file):
    windows = drawn(TwoBegin(), text=file, nsamples=20, vocab_size=1000)
    assert windows.begin == (900, 901)
    assert windows.tokens[:, :2].tolist() == [[900, 901]] * 20
    assert (windows.tokens[:, 2:] < 100).all()


def test_windows_of_nothing_but_begin_tokens_are_refused(file):
    assert refusal(TwoBegin(), text=file, seqlen=2) == (
        "seqlen: expected more than the tokenizer's 2 begin tokens, got windows of 2; give a larger --seqlen"
    )
    assert drawn(TwoBegin(), text=file, seqlen=2, begin="never", vocab_size=1000).tokens.shape[1] == 2


@pytest.mark.parametrize("count", [1, 3])
def test_documents_that_begin_with_the_begin_token_themselves_get_no_second_one(tokenizer, count):
    documents = ["<s> w2 w3 w4", *["<s> w5 w6"] * count]
    windows = drawn(tokenizer, documents, seqlen=4, nsamples=200).tokens.tolist()
    assert all(window[0] == 0 for window in windows)
    assert not any(pair == (0, 0) for window in windows for pair in itertools.pairwise(window))
    assert [0, 2, 3, 4] in windows
    assert ([0, 5, 6, 0] in windows) == (count > 1)


def test_the_last_window_of_a_text_whose_last_document_has_a_begin_token(tokenizer):
    # The window that would begin right before it has no token to move on to, so it moves back.
    windows = drawn(tokenizer, ["w2 w3 w4", "<s> w5 w6"], seqlen=4, nsamples=200).tokens.tolist()
    assert {tuple(window) for window in windows} == {(0, 2, 3, 4), (0, 3, 4, 0), (0, 4, 0, 5)}


def test_consecutive_windows_drop_the_tail():
    tokens = torch.arange(11)
    assert consecutive_windows(tokens, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert consecutive_windows(tokens, 4, limit=1).tolist() == [[0, 1, 2, 3]]
    assert consecutive_windows(tokens, 11).shape == (1, 11)


def test_consecutive_windows_of_a_text_that_is_too_short():
    with pytest.raises(CalibrationError) as caught:
        consecutive_windows(torch.arange(3), 4, source="a.txt")
    assert str(caught.value) == ("a.txt: 3 tokens are fewer than one window of 4; give more text or a smaller --seqlen")
