from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from eggs_ptp.cli import doctor


def rows(found):
    return {row["name"]: row for row in found["available"]}


def test_says_what_is_here_and_what_is_not(eggs):
    found = eggs("doctor", "--json").json
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["eggs-ptp"] == "0.1.0"
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory"] > found["machine"]["memory_free"] > 0
    assert {"hub", "datasets", "pyarrow", "demo"} < set(rows(found))
    out = eggs("doctor").out
    assert f"{found['machine']['threads']} torch threads" in out
    assert all(row["detail"].split(",")[0] in out for row in found["available"])


def test_the_hub_is_off_by_choice(eggs):
    row = rows(eggs("doctor", "--json").json)["hub"]
    assert not row["ok"]
    assert row["detail"].startswith("HF_HUB_OFFLINE is set")


@pytest.mark.parametrize(("answer", "ok"), [("hello", True), (OSError("no route"), False)])
def test_the_hub_answers_or_not(monkeypatch, answer, ok):
    def head(url, timeout):
        assert timeout <= 10
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    name, found, detail = doctor._hub()
    assert (name, found) == ("hub", ok)
    assert ("no route" in detail) is not ok


def test_graphics_cards_are_named(monkeypatch):
    card = SimpleNamespace(name="H200", total_memory=150e9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    assert doctor._cuda() == [("cuda:0", True, "H200, 150.0 GB, compute capability 9.0")]


@pytest.mark.parametrize(("built", "reason"), [(None, "built without CUDA"), ("12.8", "finds no GPU or driver")])
def test_says_why_there_is_no_card(monkeypatch, built, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    assert reason in doctor._cuda()[0][2]


def test_missing_extras_say_what_is_lost(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda package: False)
    assert "--calibration and --text must name files" in doctor._datasets()[2]
    assert "no Parquet files" in doctor._pyarrow()[2]
