import math
from itertools import pairwise

import pytest

from eggs_ptp.evaluation.verdict import (
    LEVELS,
    format_ratio,
    judge_ratio,
    little_text,
    thin_calibration,
)


def test_the_case_of_the_guide_is_said_in_words():
    verdict = judge_ratio(6.4, (6.1, 6.7), method="sparsegpt", calibration_tokens=16_384)
    assert verdict.text == (
        "6.4 times dense: not usable; try a milder pattern, more calibration text, --method eggs+, training with "
        "keep_zeros"
    )


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (0.97, "0.97 times dense: as good as dense on this text"),
        (1.02, "1.02 times dense: as good as dense on this text"),
        (1.05, "1.05 times dense: close to dense"),
        (1.26, "1.26 times dense: a clear loss"),
        (1.88, "1.88 times dense: a heavy loss"),
        (3.43, "3.4 times dense: not usable"),
        (1261.0, "1.3e+03 times dense: not usable"),
        (math.inf, "inf times dense: not usable"),
        (math.nan, "nan times dense: not usable"),
    ],
)
def test_the_levels_agree_with_the_published_models(ratio, words):
    assert judge_ratio(ratio).headline.startswith(words)


def test_levels_ascend_and_end_with_every_ratio():
    assert all(first.highest < second.highest for first, second in pairwise(LEVELS))
    assert LEVELS[-1].highest == math.inf
    assert [level.can_be_used for level in LEVELS] == [True, True, True, False, False]


def test_a_model_that_is_close_to_dense_gets_no_advice():
    assert judge_ratio(1.08).text == "1.08 times dense: close to dense"


def test_what_was_done_already_is_not_advised():
    advice = judge_ratio(1.3, method="eggs+", calibration_tokens=262_144).advice
    assert advice == ("a milder pattern",)
    assert judge_ratio(1.3, method="wanda", calibration_tokens=0).advice == ("a milder pattern", "--method eggs+")
    assert "more calibration text" in judge_ratio(1.3, method="eggs-max", calibration_tokens=65_535).advice


def test_an_interval_over_two_levels_is_a_doubt():
    assert "uncertain, the 95 % interval is 1.40 to 1.70" in judge_ratio(1.55, (1.40, 1.70)).text
    assert judge_ratio(1.55, (1.52, 1.58)).doubt == ""


@pytest.mark.parametrize(("tokens", "thin"), [(16_384, True), (65_535, True), (65_536, False), (0, False)])
def test_thin_calibration_is_named(tokens, thin):
    assert (f"{tokens:,} calibration tokens are thin" in thin_calibration(tokens)) is thin


@pytest.mark.parametrize(
    ("windows", "tokens", "little"), [(29, 50_000, True), (30, 9_999, True), (30, 10_000, False), (1, 127, True)]
)
def test_little_text_is_named(windows, tokens, little):
    assert little_text(windows, tokens).startswith("too little text") is little


@pytest.mark.parametrize(("ratio", "text"), [(1.004, "1.00"), (2.0, "2.0"), (99.94, "99.9"), (640.2, "640")])
def test_ratios_have_the_digits_that_say_something(ratio, text):
    assert format_ratio(ratio) == text
