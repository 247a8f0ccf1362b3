"""Likelihoods of continuations equal those of each pair scored alone."""

import math

import pytest
import torch
from tiny import FAMILIES

from eggs_ptp.errors import CalibrationError, NumericsError
from eggs_ptp.evaluation import continuation
from eggs_ptp.evaluation.continuation import continuation_scores
from eggs_ptp.models.load import load_model


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny())


PAIRS = [([1, 2, 3], [4]), ([1, 2, 3], [5]), ([7] * 20, [8, 9, 10]), ([1], [2, 3, 4]), ([1, 2], [3, 5]), ([9, 9], [9])]


def alone(model, before, after, context=128):
    """Score one pair, without padding or sharing, in float64."""
    ids = torch.tensor([[*before, *after][-context - 1 :]])
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits[0].double()
    rows = logits[-len(after) :]
    likelihood = sum(float(row[token] - row.logsumexp(0)) for row, token in zip(rows, after, strict=True))
    return likelihood, rows.argmax(-1).tolist() == list(after)


def scores_and_shapes(model, pairs):
    """Score pairs, and return the shapes of the batches too."""
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    scores = continuation_scores(model, pairs, context=128)
    hook.remove()
    return scores, shapes


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 16, 4096])
def test_scores_are_those_of_each_pair_alone(model, batch_tokens, sharing, monkeypatch):
    if not sharing:
        monkeypatch.setattr(continuation, "SHARING_MODEL_TYPES", ())
    best = model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].argmax().item()
    pairs = [*PAIRS, ([5, 6], [best])]
    got = continuation_scores(model, pairs, context=128, batch_tokens=batch_tokens)
    for score, (before, after) in zip(got, pairs, strict=True):
        likelihood, greedy = alone(model, before, after)
        assert score.likelihood == pytest.approx(likelihood, rel=1e-5)
        assert score.is_greedy == greedy
    assert got[-1].is_greedy
    assert not all(score.is_greedy for score in got)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_of_one_context_do_not_see_each_other(tiny, family, attention):
    model = load_model(tiny(family))
    model.set_attn_implementation(attention)
    pairs = [([3, 1, 4, 1, 5], after) for after in ([9, 2, 6], [5], [3, 5, 8, 9, 7], [9, 3])]
    pairs += [([2, 7], [1, 8, 2, 8]), ([2, 7], [1, 8])]
    got, shapes = scores_and_shapes(model, pairs)
    assert shapes == [(2, 5 + 2 + 0 + 4 + 1)]
    for score, pair in zip(got, pairs, strict=True):
        assert score.likelihood == pytest.approx(alone(model, *pair)[0], rel=1e-5)


def test_beyond_a_sliding_window_nothing_is_shared(tiny):
    model = load_model(tiny("mistral", sliding_window=6))
    pairs = [([3, 1, 4, 1, 5], after) for after in ([9, 2, 6], [3, 5, 8, 9, 7])]
    for score, pair in zip(continuation_scores(model, pairs, context=128), pairs, strict=True):
        assert score.likelihood == pytest.approx(alone(model, *pair)[0], rel=1e-5)


def test_a_text_that_is_too_long_loses_its_beginning(model):
    pair = (list(range(100)), [7, 8])
    (got,) = continuation_scores(model, [pair], context=16)
    assert got.likelihood == pytest.approx(alone(model, *pair, context=16)[0], rel=1e-5)
    assert got.likelihood != pytest.approx(alone(model, *pair)[0], rel=1e-3)


def test_choices_of_one_token_share_a_row(model):
    _, shapes = scores_and_shapes(model, [([1, 2, 3], [token]) for token in range(10)])
    assert shapes == [(1, 3)]


@pytest.mark.parametrize("after", [[], [1] * 17])
def test_continuations_of_impossible_length_are_refused(model, after):
    with pytest.raises(
        CalibrationError, match=f"expected a continuation of 1 to 16 tokens, .* got one of {len(after)}"
    ):
        continuation_scores(model, [([1], after)], context=16)


def test_the_pair_without_a_finite_likelihood_is_named(tiny):
    broken = load_model(tiny())
    with torch.no_grad():
        broken.lm_head.weight[3] = math.nan
    with pytest.raises(NumericsError, match=r"2 of 2 continuations \(the first is number 0\)"):
        continuation_scores(broken, [([1, 2], [4]), ([1, 2], [3])], context=16)
