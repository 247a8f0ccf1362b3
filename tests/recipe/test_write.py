import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from eggs_ptp.recipe.write import toml_of

SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
TABLES = st.dictionaries(st.text(), VALUES | st.lists(st.dictionaries(st.text(), VALUES), max_size=3), max_size=5)


@settings(deadline=None)
@given(TABLES)
def test_what_is_written_reads_back_the_same(table):
    assert tomllib.loads(toml_of(table)) == table


def test_the_layout():
    table = {"rules": [{"a": 1}, {"a": 2}], "seed": 0, "part": {"x": {"y": "é"}}, "none": [], "on": True}
    assert toml_of(table) == (
        'seed = 0\nnone = []\non = true\n\n[part]\nx = { y = "é" }\n\n[[rules]]\na = 1\n\n[[rules]]\na = 2\n'
    )
