from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from eggs_ptp.cli import doctor


def features(result):
    return {feature["name"]: feature for feature in result["available"]}


def test_lists_versions_machine_and_features(eggs):
    result = eggs("doctor", "--json").json
    assert result["versions"]["torch"] == torch.__version__
    assert result["versions"]["eggs-ptp"] == "0.1.0"
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["memory"] > result["machine"]["memory_free"] > 0
    assert {"hub", "datasets", "pyarrow", "demo"} < set(features(result))
    out = eggs("doctor").out
    assert f"{result['machine']['threads']} torch threads" in out
    assert all(feature["detail"].split(",")[0] in out for feature in result["available"])


def test_an_offline_hub_is_not_asked(eggs):
    hub = features(eggs("doctor", "--json").json)["hub"]
    assert not hub["ok"]
    assert hub["detail"].startswith("HF_HUB_OFFLINE is set")


@pytest.mark.parametrize(("answer", "ok"), [("hello", True), (OSError("no route"), False)])
def test_the_hub_answers_or_not(monkeypatch, answer, ok):
    def head(url, timeout):
        assert timeout <= 10
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    hub = doctor.hub_feature()
    assert (hub.name, hub.available) == ("hub", ok)
    assert ("no route" in hub.detail) is not ok


def test_gpus_are_named(monkeypatch):
    gpu = SimpleNamespace(name="H200", total_memory=150e9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert doctor.cuda_features() == [("cuda:0", True, "H200, 150.0 GB, compute capability 9.0")]


@pytest.mark.parametrize(("built", "reason"), [(None, "built without CUDA"), ("12.8", "finds no GPU or driver")])
def test_the_reason_for_a_missing_gpu_is_given(monkeypatch, built, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    assert reason in doctor.cuda_features()[0].detail


def test_missing_packages_name_the_missing_feature(monkeypatch):
    monkeypatch.setattr(doctor, "is_installed", lambda package: False)
    assert "--calibration and --text must name files" in doctor.datasets_feature().detail
    assert "no Parquet files" in doctor.pyarrow_feature().detail
