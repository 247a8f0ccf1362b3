"""Recipes and patterns from any text: a recipe, or an error of one line."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eggs_ptp.core.pattern import AnyPattern, parse_pattern
from eggs_ptp.errors import EggsError, PatternError
from eggs_ptp.recipe.read import read_recipe
from eggs_ptp.recipe.recipe import Recipe

KEYS = ["seed", "pattern", "method", "steps", "steps.score", "steps.score.alpha", "steps.update", "calibration", "mask"]
KEYS += [
    "calibration.text",
    "calibration.nsamples",
    "targets",
    "targets.match",
    "include",
    "permutation",
    "steps.select.B",
]
WORDS = [
    "2:4",
    "0.5",
    "4:8",
    "ria",
    "eggs+",
    "wanda+dsnot",
    "sparsegpt",
    "true",
    "nan",
    "-1",
    "1e400",
    "1" * 5000,
    "[]",
]
WORDS += [
    "{}",
    "[" * 2000,
    '["sparsegpt", "pcg"]',
    "{name = 'ria'}",
    "1979-05-27",
    "12:30:00",
    "''",
    "*",
    "\ud800",
    "\0",
]
text = st.one_of(st.sampled_from(WORDS), st.text(max_size=12))
keys = st.one_of(st.sampled_from(KEYS), st.lists(st.sampled_from(KEYS + WORDS[:4]), max_size=3).map(".".join), text)
lines = st.one_of(
    st.tuples(keys, text).map(" = ".join), keys.map("[{}]".format), keys.map("[[{}]]".format), st.text(max_size=20)
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
many_examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_or_refused(read, kind):
    """Return what was read; None if it was refused in one line."""
    try:
        return read()
    except kind as error:
        message = str(error)
    assert message.strip()
    assert "\n" not in message
    return None


@many_examples
@given(st.one_of(st.text(max_size=30), st.from_regex(r"\s?[0-9]{1,20}\s?:\s?[0-9]{1,20}"), st.floats().map(str), text))
@example("1:1" + "0" * 5000)
@example("٢:٤")
def test_any_pattern(words):
    pattern = read_or_refused(lambda: parse_pattern(words), PatternError)
    assert pattern is None or (isinstance(pattern, AnyPattern) and parse_pattern(str(pattern)) == pattern)


@many_examples
@given(st.lists(lines, max_size=6))
@example(["x = " + "[" * 5000])
@example(["seed = " + "1" * 5000])
@example(["seed = 0x" + "f" * 5000])
def test_any_file(tmp_path, lines):
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    assert isinstance(read_or_refused(lambda: read_recipe(path), EggsError), Recipe | None)


@many_examples
@given(st.binary(max_size=40))
def test_any_bytes(tmp_path, content):
    (tmp_path / "recipe.toml").write_bytes(content)
    assert isinstance(read_or_refused(lambda: read_recipe(tmp_path / "recipe.toml"), EggsError), Recipe | None)


@many_examples
@given(st.lists(st.one_of(st.tuples(keys, text).map("=".join), text), max_size=4))
@example(["seed=" + "1" * 5000])
@example(["targets=" + "[" * 5000])
def test_any_override(overrides):
    assert isinstance(read_or_refused(lambda: read_recipe(None, overrides), EggsError), Recipe | None)


@many_examples
@given(
    st.dictionaries(st.sampled_from(["method", "pattern", "seed", "include", "steps", "targets", "permutation"]), plain)
)
def test_any_setting(settings):
    assert isinstance(read_or_refused(lambda: read_recipe(None, (), **settings), EggsError), Recipe | None)


def test_paths_that_cannot_be_read_are_named(tmp_path):
    for path, reason in ((tmp_path, "cannot be read"), (tmp_path / "no.toml", "cannot be read")):
        with pytest.raises(EggsError, match=reason):
            read_recipe(path)
