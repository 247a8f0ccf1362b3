"""Sampled text: greedy, seeded, and independent of the checkpoint's generation config."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.generate import prompt_ids, sample, sample_text


class LetterTokenizer:
    """One token a letter."""

    pad_token_id, eos_token_id = None, 2

    def __call__(self, text, verbose, add_special_tokens=True):
        return {"input_ids": [ord(letter) - 97 for letter in text]}

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(97 + int(i)) for i in ids)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=26,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def greedy(model, text, tokens):
    ids = [ord(letter) - 97 for letter in text]
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return "".join(chr(97 + i) for i in ids)


def test_temperature_zero_takes_the_most_likely_token(model):
    assert sample_text(model, LetterTokenizer(), "abc", tokens=12, temperature=0.0) == greedy(model, "abc", 12)


def test_the_seed_decides_and_the_global_state_is_unchanged(model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    texts = [sample_text(model, LetterTokenizer(), "abc", tokens=20, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("abc")
    assert len(texts[0]) == 23


def test_the_checkpoints_own_sampling_settings_do_not_interfere(model):
    plain = sample_text(model, LetterTokenizer(), "abc", tokens=20, temperature=1.0)
    original = model.generation_config
    try:
        settings = {**original.to_dict(), "do_sample": True, "top_k": 1, "top_p": 0.1}
        model.generation_config = type(original)(**settings)
        assert sample_text(model, LetterTokenizer(), "abc", tokens=20, temperature=1.0) == plain
    finally:
        model.generation_config = original


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ("abc", {"temperature": -1.0}, "temperature: .* got -1"),
        ("abc", {"tokens": 62}, "3 prompt tokens and 62 new ones exceed the model's context of 64"),
    ],
)
def test_impossible_requests_are_refused(model, prompt, options, message):
    with pytest.raises(CalibrationError, match=message):
        sample_text(model, LetterTokenizer(), prompt, **options)


class ChatTokenizer(LetterTokenizer):
    """A tokenizer whose template writes its begin token z itself, and opens an answer with y."""

    chat_template = "a template"
    all_special_ids = (24, 25, 2)

    def __call__(self, text, verbose, add_special_tokens=True):
        begin = [25] if add_special_tokens else []
        return {"input_ids": [*begin, *super().__call__(text, verbose)["input_ids"]]}

    def apply_chat_template(self, chat, tokenize, add_generation_prompt):
        assert (chat[0]["role"], tokenize, add_generation_prompt) == ("user", False, True)
        return f"z{chat[0]['content']}y"


def test_a_chat_has_one_begin_token_and_opens_an_answer():
    assert prompt_ids(ChatTokenizer(), "ab", chat=True) == [25, 0, 1, 24]
    assert prompt_ids(ChatTokenizer(), "ab", chat=False) == [25, 0, 1]
    assert prompt_ids(ChatTokenizer(), "zab", chat=False) == [25, 0, 1]
    assert prompt_ids(ChatTokenizer(), "aab", chat=False) == [25, 0, 0, 1]
    with pytest.raises(CalibrationError, match="--chat: expected a tokenizer with a chat template"):
        prompt_ids(LetterTokenizer(), "ab", chat=True)


def test_a_template_that_fails_is_named(monkeypatch):
    def fail(self, *arguments, **options):
        raise ValueError("no user turn\nand more")

    monkeypatch.setattr(ChatTokenizer, "apply_chat_template", fail)
    with pytest.raises(CalibrationError, match=r"chat template fails \(no user turn\); give --no-chat"):
        prompt_ids(ChatTokenizer(), "ab", chat=True)


@pytest.mark.parametrize("count", [1, 3])
def test_the_token_that_ends_a_text_is_kept_apart(model, count, monkeypatch):
    expected = greedy(model, "abc", count)[3:]
    end = ord(expected[-1]) - 97
    first = expected.index(expected[-1]) + 1
    monkeypatch.setattr(model.generation_config, "eos_token_id", [9999, end])
    got = sample(model, ChatTokenizer(), [0, 1, 2], tokens=10, temperature=0.0)
    assert (got.text, got.tokens, got.ended_by) == (expected[: first - 1], first, expected[-1])
    assert got.ended_at_once == (first == 1)


def test_special_tokens_inside_a_text_are_named(model, monkeypatch):
    text = greedy(model, "abc", 6)[3:]
    monkeypatch.setattr(ChatTokenizer, "all_special_ids", (ord(text[1]) - 97,))
    got = sample(model, ChatTokenizer(), [0, 1, 2], tokens=6, temperature=0.0)
    assert (got.text, got.ended_by, got.ended_at_once) == (text, None, False)
    assert got.special == tuple(letter for letter in text if letter == text[1])
