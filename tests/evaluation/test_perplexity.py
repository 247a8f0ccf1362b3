"""Perplexity against the papers' protocol, literal formulas, and recorded values."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden import GOLDEN, needs_golden

from eggs_ptp.errors import CalibrationError, NumericsError
from eggs_ptp.evaluation.perplexity import perplexity, window_losses
from eggs_ptp.evaluation.window import EvaluationWindows


class Bigram(torch.nn.Module):
    """A model whose next-token logits are a row of a table."""

    device = torch.device("cpu")

    def __init__(self, table, context=None):
        super().__init__()
        self.table = table
        self.config = SimpleNamespace(max_position_embeddings=context)
        self.shapes = []

    def forward(self, input_ids, attention_mask, use_cache):
        assert use_cache is False
        assert not self.training
        self.shapes.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.table[input_ids])


class LetterTokenizer:
    """One token a character: a = 3, b = 4, ...; a blank line is two tokens; 1 is the begin and 2 the end token."""

    def __init__(self, begin=1, end=2):
        self.bos_token_id, self.eos_token_id = begin, end

    def __call__(self, text, add_special_tokens=True, verbose=True):
        if isinstance(text, list):
            return {"input_ids": [self(document, add_special_tokens)["input_ids"] for document in text]}
        begin = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        return {"input_ids": begin + [0 if letter == "\n" else ord(letter) - 94 for letter in text]}


@pytest.fixture
def bigram():
    return Bigram(torch.randn(30, 30, generator=torch.Generator().manual_seed(1)), context=64)


def windows_of(sequences):
    """Return windows in which every token but the first is a target."""
    scored = torch.tensor([len(sequence) - 1 for sequence in sequences])
    return EvaluationWindows(sequences, scored, "documents", 64, None, sum(map(len, sequences)), 0)


def oracle(table, ids):
    """Compute the loss of one sequence, one term at a time, in float64."""
    total = 0.0
    for token, following in itertools.pairwise(ids):
        row = table[token].double()
        total += math.log(sum(math.exp(float(logit)) for logit in row)) - float(row[following])
    return total


@needs_golden
def test_packed_equals_the_original_protocol():
    file = np.load(GOLDEN / "eval/bigram_ppl.npz")
    ids = file["token_ids"][0].tolist()
    got = perplexity(
        Bigram(torch.from_numpy(file["logit_table"])),
        lambda text, **_: {"input_ids": ids},
        ["any"],
        protocol="packed",
        seqlen=int(file["seqlen"]),
    )
    assert got.value == pytest.approx(float(file["perplexity"]), rel=1e-5)
    assert (got.windows, got.tokens) == (9, 9 * 31)


def test_packed_joins_with_a_blank_line_tokenises_once_and_drops_the_tail(bigram):
    ids = LetterTokenizer()("abcde\n\nfghij\n\nkl")["input_ids"]
    windows = [ids[0:4], ids[4:8], ids[8:12], ids[12:16]]
    losses = [oracle(bigram.table, window) / 3 for window in windows]
    got = perplexity(bigram, LetterTokenizer(), ["abcde", "fghij", "kl"], protocol="packed", seqlen=4)
    assert got.value == pytest.approx(math.exp(sum(losses) / 4), rel=1e-6)
    assert (got.windows, got.tokens, got.truncated, got.seqlen) == (4, 12, 0, 4)
    assert got.standard_error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(4), rel=1e-6)
    first = perplexity(bigram, LetterTokenizer(), ["abcde", "fghij", "kl"], protocol="packed", seqlen=4, max_windows=1)
    assert first.value == pytest.approx(math.exp(losses[0]), rel=1e-6)
    assert first.standard_error is None


def test_documents_are_separate_with_begin_and_end_tokens_and_weigh_by_tokens(bigram):
    documents = ["abcdefg", "h", "kj"]
    sequences = [[1, *LetterTokenizer()(text, add_special_tokens=False)["input_ids"], 2] for text in documents]
    total = sum(oracle(bigram.table, ids) for ids in sequences)
    got = perplexity(bigram, LetterTokenizer(), documents, protocol="documents")
    assert got.nll == pytest.approx(total / (8 + 2 + 3), rel=1e-6)
    assert (got.windows, got.tokens, got.truncated, got.seqlen) == (3, 13, 0, 64)


def test_documents_are_cut_at_seqlen_and_counted(bigram):
    got = perplexity(bigram, LetterTokenizer(), ["abcdefg", "h"], protocol="documents", seqlen=4)
    assert (got.truncated, got.tokens) == (1, 3 + 2)
    total = oracle(bigram.table, [1, 3, 4, 5]) + oracle(bigram.table, [1, 10, 2])
    assert got.nll == pytest.approx(total / 5, rel=1e-6)


def test_without_begin_and_end_tokens_documents_without_a_target_are_dropped(bigram):
    got = perplexity(bigram, LetterTokenizer(None, None), ["abc", "d", ""], protocol="documents")
    assert (got.windows, got.tokens) == (1, 2)
    assert got.nll == pytest.approx(oracle(bigram.table, [3, 4, 5]) / 2, rel=1e-6)


def test_max_windows_takes_the_first_documents(bigram):
    assert (
        perplexity(bigram, LetterTokenizer(), ["abc", "de", "f"], protocol="documents", max_windows=2).nll
        == perplexity(bigram, LetterTokenizer(), ["abc", "de"], protocol="documents").nll
    )


def test_batching_changes_no_loss_of_a_transformer(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    sequences = [torch.randint(0, 30, (n,)) for n in (9, 30, 2, 17, 17, 5)]
    alone = window_losses(model, windows_of(sequences), batch_tokens=1)
    together = window_losses(model, windows_of(sequences), batch_tokens=4096)
    torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-6)
    assert model.training


def test_batches_have_similar_lengths_and_stay_in_their_budget(bigram):
    sequences = [torch.arange(n) for n in (9, 3, 8, 3, 4, 20)]
    calls = []
    window_losses(bigram, windows_of(sequences), batch_tokens=16, progress=lambda *counts: calls.append(counts))
    assert bigram.shapes == [(3, 4), (1, 8), (1, 9), (1, 20)]
    assert calls == [(3, 6), (4, 6), (5, 6), (6, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "packed", "seqlen": 65}, "seqlen: 65 is longer than the model's context of 64"),
        ({"protocol": "packed", "seqlen": 1}, "seqlen: expected at least 2, .* got 1"),
        ({"protocol": "packed", "seqlen": 50}, "50"),
    ],
)
def test_impossible_windows_are_refused(bigram, options, message):
    with pytest.raises(CalibrationError, match=message):
        perplexity(bigram, LetterTokenizer(), ["abcdef"], **options)


def test_documents_with_nothing_to_predict_are_refused(bigram):
    with pytest.raises(CalibrationError, match="no document with a token to predict among the 0 documents"):
        perplexity(bigram, LetterTokenizer(), [], protocol="documents")


def test_the_window_whose_loss_is_not_finite_is_named(bigram):
    bigram.table[7] = math.nan
    with pytest.raises(NumericsError, match=r"1 of 3 windows \(the first is number 1\)"):
        perplexity(bigram, LetterTokenizer(), ["abc", "ef", "bca"], protocol="documents")


def test_seqlen_defaults_to_the_context_up_to_2048():
    text = ["ab" * 1100]
    table = torch.zeros(30, 30)
    assert perplexity(Bigram(table, 128), LetterTokenizer(), text, protocol="packed").seqlen == 128
    wide = perplexity(Bigram(table, 9999), LetterTokenizer(), text, protocol="packed")
    assert (wide.seqlen, wide.value) == (2048, pytest.approx(30.0, rel=1e-6))
    assert json.loads(json.dumps(wide.to_dict()))["windows"] == 1


@pytest.fixture(scope="module")
def stories(shared):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "data/models/tinystories-656k"
    lines = (shared / "data/tinystories/valid_stories.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), texts


def test_separate_stories_have_the_recorded_perplexity(stories):
    got = perplexity(*stories, protocol="documents")
    assert got.value == pytest.approx(22.828, abs=5e-4)
    assert (got.windows, got.truncated) == (718, 1)


def test_packed_stories_without_special_tokens_have_the_recorded_perplexity(stories):
    model, tokenizer, texts = stories
    got = perplexity(
        model,
        lambda text, **_: tokenizer(text, add_special_tokens=False, verbose=False),
        texts,
        protocol="packed",
        seqlen=256,
        max_windows=60,
    )
    assert got.value == pytest.approx(33.026, abs=5e-4)


def test_packed_stories_with_begin_tokens_have_the_recorded_perplexity(stories):
    model, tokenizer, texts = stories
    got = perplexity(
        model,
        lambda text, **_: {"input_ids": list(itertools.chain(*tokenizer(texts, verbose=False)["input_ids"]))},
        texts,
        protocol="packed",
        seqlen=512,
    )
    assert got.value == pytest.approx(39.825, abs=5e-4)
