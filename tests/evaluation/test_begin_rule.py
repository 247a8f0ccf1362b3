"""The begin rule: which packed windows begin with the begin token, and what results of different rules may not do."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from eggs_ptp.core.records import write_record
from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.assessment import Results, assess
from eggs_ptp.evaluation.begin_rule import RecordedRule, apply_begin_rule, describe_begin, with_begin
from eggs_ptp.evaluation.evaluation_record import read_evaluation_record
from eggs_ptp.evaluation.model_under_test import load_model_under_test
from eggs_ptp.evaluation.perplexity import Perplexity, perplexity
from eggs_ptp.evaluation.text import EvaluationText
from eggs_ptp.evaluation.window import make_windows

DOCUMENTS = ["abcdefghijklmnopqrstuvwxyz" * 3]


class Letters:
    """One token a letter, from 3 on; 1 is the begin token, which it writes or not; `^` in a text is one too."""

    def __init__(self, writes=True, begin=1):
        self.writes, self.bos_token_id, self.eos_token_id, self.eos_token = writes, begin, 2, "$"

    def __call__(self, text, add_special_tokens=True, verbose=True):
        if isinstance(text, list):
            return {"input_ids": [self(document, add_special_tokens)["input_ids"] for document in text]}
        known = {"^": 1, "$": 2, "\n": 0}
        ids = [known.get(letter, ord(letter) - 94) for letter in text]
        return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens and self.writes else ids}


def model_of(model_type):
    return SimpleNamespace(config=SimpleNamespace(model_type=model_type))


def packed(tokenizer, seqlen=8, **options):
    return make_windows(tokenizer, DOCUMENTS, protocol="packed", context=64, seqlen=seqlen, **options)


def losses_of(ratio):
    """Return a measure that gives windows without begin tokens `ratio` times the perplexity of those with them."""

    def measure(windows):
        measured.append(len(windows.sequences))
        nats = 1.0 if windows.begin else 1.0 + math.log(ratio)
        return windows.scored.double() * nats

    measured: list[int] = []
    measure.measured = measured
    return measure


def refused(*_):
    raise AssertionError("nothing is to be measured")


def decided(windows, tokenizer, model_type="llama", measure=refused, **options):
    return apply_begin_rule(windows, tokenizer, model_of(model_type), measure=measure, **options)


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text"])
def test_gemma_models_get_begin_tokens_and_the_reason(model_type):
    windows = packed(Letters())
    got = decided(windows, Letters(), model_type)
    assert got.begin == (1,)
    assert got.begin_reason == f"{model_type} models are broken without it"
    for before, after in zip(windows.sequences, got.sequences, strict=True):
        assert after.tolist() == [1, *before.tolist()[1:]]
    assert torch.equal(got.scored, windows.scored)
    assert got.digest != windows.digest


@pytest.mark.parametrize(("ratio", "begins"), [(1.11, True), (4.1, True), (1.09, False), (0.5, False)])
def test_other_models_are_measured_on_the_first_windows(ratio, begins):
    measure = losses_of(ratio)
    windows = packed(Letters())
    got = decided(windows, Letters(), "mistral", measure)
    assert measure.measured == [4, 4]
    assert len(got.sequences) == len(windows.sequences) > 4
    assert (got.begin == (1,)) is begins
    assert got.begin_reason == f"without it the perplexity of the first 4 windows is {ratio:.3g} times as high"
    assert (got.digest == windows.digest) is not begins


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama"])
def test_a_tokenizer_that_writes_no_begin_token_leaves_all_as_it_was(model_type):
    tokenizer = Letters(writes=False)
    windows = packed(tokenizer)
    assert decided(windows, tokenizer, model_type) is windows


def test_the_rule_can_be_chosen():
    windows = packed(Letters())
    assert decided(windows, Letters(), "gemma", rule="never").digest == windows.digest
    assert decided(windows, Letters(), "llama", rule="always").begin == (1,)
    # A begin token that the tokenizer has, but does not write.
    assert decided(packed(Letters(False)), Letters(False), rule="always").begin == (1,)
    with pytest.raises(CalibrationError, match="begin: expected a tokenizer with a begin token, got one without"):
        decided(windows, Letters(False, begin=None), rule="always")
    with pytest.raises(CalibrationError, match="begin: expected one of auto, always, never, got 'sometimes'"):
        decided(windows, Letters(), rule="sometimes")


def test_documents_have_begin_tokens_anyway():
    windows = make_windows(Letters(), ["abc", "de"], protocol="documents", context=64)
    assert decided(windows, Letters(), "gemma") is windows
    assert decided(windows, Letters(), rule="always") is windows
    with pytest.raises(CalibrationError, match="begin: expected auto or always with protocol documents"):
        decided(windows, Letters(), rule="never")


def test_the_rule_of_a_record_is_followed_where_it_would_be_measured():
    windows = packed(Letters())
    assert decided(windows, Letters(), recorded=RecordedRule((1,), "dense")).begin == (1,)
    plain = decided(windows, Letters(), recorded=RecordedRule((), "dense"))
    assert (plain.digest, plain.begin_reason) == (windows.digest, "as for dense")
    assert decided(windows, Letters(), "gemma2", recorded=RecordedRule((), "dense")).begin == (1,)


@pytest.mark.parametrize("stride", [None, 3])
def test_windows_with_begin_tokens_predict_the_same_targets(stride):
    windows = packed(Letters(), stride=stride)
    got = with_begin(windows, (1,), "")
    for before, after, count in zip(windows.sequences, got.sequences, got.scored.tolist(), strict=True):
        assert before[-count:].tolist() == after[-count:].tolist()
    assert got.scored.tolist() == windows.scored.tolist()


def test_two_begin_tokens_are_not_predicted():
    got = with_begin(packed(Letters()), (1, 2), "")
    assert got.scored.tolist() == [6] * len(got.sequences)
    assert all(sequence[:2].tolist() == [1, 2] and len(sequence) == 8 for sequence in got.sequences)
    with pytest.raises(CalibrationError, match="seqlen: expected more than the 2 begin tokens of every window, got 2"):
        with_begin(packed(Letters(), seqlen=2), (1, 2), "")


def test_a_chat_that_brings_its_begin_token_gets_no_second_one():
    documents = ["^abc", "^def", "^ghi"]
    windows = make_windows(Letters(), documents, protocol="packed", context=64, seqlen=5, joiner="")
    assert torch.cat(list(windows.sequences)).tolist() == [1, 3, 4, 5, 1, 6, 7, 8, 1, 9]
    got = with_begin(windows, (1,), "")
    assert [sequence.tolist() for sequence in got.sequences] == [[1, 3, 4, 5, 1], [1, 7, 8, 1, 9]]
    moved = make_windows(Letters(), ["^abcd", "^ef"], protocol="packed", context=64, seqlen=4, joiner="")
    assert [sequence.tolist() for sequence in with_begin(moved, (1,), "").sequences] == [[1, 3, 4, 5], [1, 7, 8]]
    assert with_begin(moved, (1,), "").scored.tolist() == [3, 2]


@pytest.mark.parametrize(
    ("document", "ids"),
    [
        ("abc", [1, 3, 4, 5, 2]),
        ("^abc", [1, 3, 4, 5, 2]),
        ("^abc$", [1, 3, 4, 5, 2]),
        ("^abc$\n", [1, 3, 4, 5, 2, 0]),
        ("ab^c", [1, 3, 4, 1, 5, 2]),
    ],
)
@pytest.mark.parametrize("writes", [True, False])
def test_documents_get_begin_and_end_tokens_once(document, ids, writes):
    windows = make_windows(Letters(writes), [document], protocol="documents", context=64)
    assert windows.sequences[0].tolist() == ids


def test_what_is_said():
    assert describe_begin((), "as for dense") == ""
    assert describe_begin([2], "gemma models are broken without it") == (
        "every window begins with the begin token: gemma models are broken without it"
    )
    assert describe_begin((2,), "") == "every window begins with the begin token"


TEXT = EvaluationText("a text", ["The first sentence of some text. " * 12, "And another document. " * 9])


@pytest.fixture
def models(tiny_with_begin):
    """Load two models of a type whose tokenizers write begin tokens."""

    def loaded(model_type="llama"):
        folders = [tiny_with_begin(model_type, seed=seed) for seed in (0, 1)]
        return [load_model_under_test(name, folder) for name, folder in zip(("first", "second"), folders, strict=True)]

    return loaded


def test_perplexity_of_gemma_is_measured_with_begin_tokens(models):
    model = models("gemma3")[0]
    options = {"protocol": "packed", "seqlen": 32, "max_windows": 6}
    auto, always, never = (
        perplexity(model.model, model.tokenizer, TEXT.documents, begin=begin, **options)
        for begin in ("auto", "always", "never")
    )
    assert auto.value == always.value != never.value
    assert (auto.begin_tokens, never.begin_tokens) == ((256,), ())
    assert auto.begin_reason == "gemma3_text models are broken without it"
    assert (auto.tokens, auto.text_tokens) == (never.tokens, never.text_tokens)
    ids = model.tokenizer("\n\n".join(TEXT.documents))["input_ids"]
    windows = [[256, *ids[start + 1 : start + 32]] for start in range(0, 6 * 32, 32)]
    with torch.no_grad():
        logits = model.model(torch.tensor(windows)).logits[:, :-1].double()
    targets = torch.tensor(windows)[:, 1:]
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert auto.nll == pytest.approx(float(nll), rel=1e-6)
    restored = Perplexity.from_record(json.loads(json.dumps(auto.to_record())))
    assert restored == auto
    assert auto.to_dict()["begin_tokens"] == [256]


def test_records_of_older_versions_begin_in_mid_text(models):
    model = models()[0]
    record = perplexity(model.model, model.tokenizer, TEXT.documents, protocol="packed", seqlen=32).to_record()
    del record["begin_tokens"], record["begin_reason"]
    assert Perplexity.from_record(record).begin_tokens == ()


def test_both_models_of_a_pair_have_one_rule_that_the_reference_decides(models, monkeypatch):
    from eggs_ptp.evaluation import assessment

    decisive = []
    apply = assessment.apply_begin_rule
    monkeypatch.setattr(
        assessment,
        "apply_begin_rule",
        lambda windows, tokenizer, model, **options: (
            decisive.append(model) or apply(windows, tokenizer, model, **options)
        ),
    )
    first, second = models()
    got = assess(first, second, text=TEXT, seqlen=32)
    assert decisive == [second.model]
    assert got.results.perplexity.begin_tokens == got.reference.perplexity.begin_tokens
    assert got.results.perplexity.sha256 == got.reference.perplexity.sha256


@pytest.mark.parametrize("recorded", ["always", "never"])
def test_a_record_decides_for_models_that_are_no_gemma(models, tmp_path, recorded):
    first, second = models()
    path = tmp_path / "second.json"
    write_record(path, assess(second, text=TEXT, seqlen=32, begin=recorded).to_record({}))
    got = assess(first, record=read_evaluation_record(path), text=TEXT, seqlen=32)
    assert got.results.perplexity.begin_tokens == ((256,) if recorded == "always" else ())
    assert got.results.perplexity.begin_reason == "as for second"
    assert got.perplexity_ratio().pairs == got.results.perplexity.windows


@pytest.mark.parametrize(
    ("model_type", "recorded", "requested", "message"),
    [
        (
            "gemma2",
            "never",
            "auto",
            "begin with the begin token .gemma2 models are broken without it., but its windows ",
        ),
        ("gemma2", "always", "never", "begin in mid-text .as requested., but its windows begin with the begin token"),
        ("llama", "never", "always", "begin with the begin token .as requested., but its windows begin in mid-text; "),
        ("llama", "always", "never", "begin in mid-text .as requested., .*or this model with --begin always"),
    ],
)
def test_results_of_different_rules_are_refused_before_anything_is_measured(
    models, tmp_path, monkeypatch, model_type, recorded, requested, message
):
    from eggs_ptp.evaluation import assessment

    first, second = models(model_type)
    path = tmp_path / "second.json"
    write_record(path, assess(second, text=TEXT, seqlen=32, begin=recorded).to_record({}))
    monkeypatch.setattr(assessment, "window_losses", refused)
    with pytest.raises(CalibrationError, match=f"second: expected perplexity on windows that {message}"):
        assess(first, record=read_evaluation_record(path), text=TEXT, seqlen=32, begin=requested)


def test_results_of_different_rules_are_not_comparable(models):
    model = models()[0]
    options = {"protocol": "packed", "seqlen": 32}
    always, never = (
        Results(perplexity(model.model, model.tokenizer, TEXT.documents, begin=begin, **options))
        for begin in ("always", "never")
    )
    with pytest.raises(CalibrationError, match="dense: expected perplexity on the same windows"):
        always.check_comparable(never, "dense")


def test_a_record_of_another_protocol_is_refused_as_such(models, tmp_path):
    first, second = models("gemma2")
    path = tmp_path / "second.json"
    write_record(path, assess(second, text=TEXT, protocol="documents").to_record({}))
    with pytest.raises(CalibrationError, match="second: expected perplexity on the same windows or items, but"):
        assess(first, record=read_evaluation_record(path), text=TEXT, seqlen=32)
