"""What eggs.json holds."""

import json
import platform

import torch

from eggs_ptp.checkpoint.record import FORMAT, RunRecord, versions


def test_versions_are_those_of_this_process(monkeypatch):
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    monkeypatch.setattr("eggs_ptp.checkpoint.record._VERSIONS", ("eggs-ptp", "no-such-package"))
    assert versions()["no-such-package"] == "not installed"


def test_a_record_is_plain_data_without_the_place_it_was_written_to():
    record = RunRecord({"model": "m"}, {"seed": 0}, "abc", None, "cpu", "float32", output="/home/somebody/out")
    record.matrices.append({"name": "q"})
    plain = json.loads(json.dumps(record.to_dict()))
    assert plain["format"] == FORMAT
    assert (plain["source"], plain["recipe"], plain["recipe_sha256"]) == ({"model": "m"}, {"seed": 0}, "abc")
    assert plain["matrices"] == [{"name": "q"}]
    assert "somebody" not in json.dumps(plain)
