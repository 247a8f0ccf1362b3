"""The expected memory of an evaluation covers what it takes, and does not grow with the text."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eggs_ptp.engine.resources import MemoryMonitor, anonymous_memory
from eggs_ptp.evaluation.fidelity import ComparedModel, measure_fidelity
from eggs_ptp.evaluation.memory import expected_memory
from eggs_ptp.evaluation.perplexity import window_losses
from eggs_ptp.evaluation.window import EvaluationWindows

VOCABULARY = 60_000


@pytest.fixture(scope="module")
def wide():
    """A model whose logits of 4096 tokens would take 983 MB."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def windows_of(count, length=1024):
    sequences = list(torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1)))
    scored = torch.full((count,), length - 1)
    return EvaluationWindows(sequences, scored, "packed", length, length, count * length, 0)


@pytest.mark.parametrize("models", [1, 2])
def test_an_evaluation_stays_below_what_is_expected(wide, models):
    windows = windows_of(4)
    expected = expected_memory([wide] * models, windows)
    with MemoryMonitor() as monitor:
        if models == 1:
            window_losses(wide, windows)
        else:
            measure_fidelity(ComparedModel(wide), ComparedModel(wide), windows)
    assert monitor.peak <= expected
    assert expected - anonymous_memory() < 1e9 * models  # all logits at once would take 2 or 4 of these
    assert monitor.peak - monitor.baseline < 4 * 4096 * VOCABULARY


def test_more_text_takes_no_more_memory(wide):
    few, many = (expected_memory([wide], windows_of(count)) for count in (4, 64))
    assert many - few < 32 << 20


def test_longer_windows_and_a_second_model_take_more(wide):
    short, long = (expected_memory([wide], windows_of(16, length)) for length in (16, 1024))
    assert short < long < expected_memory([wide, wide], windows_of(16))
