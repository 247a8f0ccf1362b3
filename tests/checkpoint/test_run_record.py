"""What eggs.json holds, and which records are refused."""

import json
import platform
import re

import pytest
import torch

from eggs_ptp.checkpoint.run_record import FORMAT, RunRecord, find_record_fault, versions


def test_versions_are_those_of_this_process(monkeypatch):
    installed = versions()
    assert installed["python"] == platform.python_version()
    assert installed["torch"] == torch.__version__
    monkeypatch.setattr("eggs_ptp.checkpoint.run_record.PACKAGES", ("eggs-ptp", "no-such-package"))
    assert versions()["no-such-package"] == "not installed"


def test_a_record_is_plain_data_without_the_path_of_the_output():
    record = RunRecord({"model": "m"}, {"seed": 0}, "abc", None, "cpu", "float32", output="/home/somebody/out")
    record.matrices.append({"name": "q"})
    plain = json.loads(json.dumps(record.to_dict()))
    assert plain["format"] == FORMAT
    assert (plain["source"], plain["recipe"], plain["recipe_sha256"]) == ({"model": "m"}, {"seed": 0}, "abc")
    assert plain["matrices"] == [{"name": "q"}]
    assert "somebody" not in json.dumps(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": float("nan")}, r"matrices\[0\]: density is nan, expected 0 to 1"),
        ({"density": 1e308}, r"matrices\[0\]: density is 1e\+308"),
        ({"density": -1}, r"matrices\[0\]: density is -1"),
        ({"density": "half"}, r"matrices\[0\]: density cannot be of type str"),
        ({"name": 3}, r"matrices\[0\]: name cannot be of type int"),
        ({"permuted": None}, r"matrices\[0\]: permuted cannot be of type NoneType"),
    ],
)
def test_a_record_with_values_of_other_types_is_refused(change, message):
    matrix = {"name": "a", "pattern": "2:4", "density": 0.5, "permuted": False, "updated": False}
    record = {"format": 2, "source": {"model": "m"}, "matrices": [matrix]}
    assert find_record_fault(record) is None
    fault = find_record_fault({**record, "matrices": [{**matrix, **change}]})
    assert fault
    assert re.search(message, fault)
