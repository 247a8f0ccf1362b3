import pytest

from eggs_ptp.method.catalogue import METHODS
from eggs_ptp.method.recorded import with_later_options


@pytest.mark.parametrize("name", METHODS)
def test_complete_steps_stay_as_they_are(name):
    steps = METHODS[name].to_dict()["steps"]
    assert with_later_options(steps) == steps


def test_options_that_came_later_have_their_defaults():
    steps = METHODS["eggs+"].to_dict()["steps"]
    older = {**steps, "correct": {"name": "drift", "share": 0.5}, "update": [{"name": "reselect", "rounds": 3}]}
    assert with_later_options(older) == {
        **steps,
        "correct": {**steps["correct"], "share": 0.5},
        "update": [{**steps["update"][0], "rounds": 3}],
    }


def test_what_is_no_longer_there_stays():
    older = {"score": {"name": "gone", "beta": 2}, "select": "top", "permute": {"widest": 8}}
    assert with_later_options(older) == older
