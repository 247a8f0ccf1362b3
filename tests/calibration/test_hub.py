import sys
from types import SimpleNamespace

import huggingface_hub
import pytest

from eggs_ptp.calibration import hub
from eggs_ptp.calibration.hub import hub_documents, hub_problem, is_hub_name
from eggs_ptp.errors import CalibrationError


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """A reachable hub with the data set `rows`, and calls of `datasets` and of the hub recorded."""
    hub_state = SimpleNamespace(rows=[{"text": "a"}, {"text": "b"}, {"text": "c"}], calls=[], checked=[])

    def load_dataset(*names, **options):
        hub_state.calls.append((names, options))
        return iter(hub_state.rows) if options["streaming"] else hub_state.rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: hub_state.checked.append(name)
    )
    return hub_state


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("allenai/c4", True),
        ("Salesforce/wikitext:wikitext-2-raw-v1", True),
        ("owner/set-1.5", True),
        ("data/c4.jsonl", False),
        ("./allenai/c4", False),
        ("/data/c4", False),
        ("c4", False),
        ("a/b/c", False),
    ],
)
def test_hub_names(text, expected):
    assert is_hub_name(text) is expected


def test_c4_is_the_first_english_shard_streamed(fake_hub, monkeypatch):
    monkeypatch.setattr(hub, "STREAMED_DOCUMENTS", 2)
    assert list(hub_documents("allenai/c4", download=False)) == ["a", "b"]
    files = {"train": "en/c4-train.00000-of-01024.json.gz"}
    assert fake_hub.calls == [(("allenai/c4", None), {"split": "train", "streaming": True, "data_files": files})]
    assert fake_hub.checked == ["allenai/c4"]


def test_the_whole_split_is_downloaded_on_request(fake_hub):
    documents = hub_documents("owner/set:part", download=True, split="test")
    assert fake_hub.calls == [(("owner/set", "part"), {"split": "test", "streaming": False})]
    assert (len(documents), documents[2], documents[:2], list(documents)) == (3, "c", ["a", "b"], ["a", "b", "c"])


def test_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CalibrationError) as caught:
        hub_documents("allenai/c4", download=False)
    assert str(caught.value) == (
        "the text allenai/c4 is on the hub and needs the package 'datasets'; pip install datasets, or "
        "pass --calibration FILE with a text of your own (.txt, .jsonl, .parquet)"
    )


@pytest.fixture
def unreachable(fake_hub, monkeypatch):
    def refuse(self, name, timeout):
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    return fake_hub


@pytest.mark.parametrize("download", [False, True])
def test_a_hub_that_cannot_be_reached(unreachable, download):
    with pytest.raises(CalibrationError) as caught:
        hub_documents("allenai/c4", download=download, flag="--text")
    assert str(caught.value) == (
        "the text allenai/c4 cannot be read from the hub (ConnectionError: Name or service not known); "
        "pass --text FILE with a text of your own (.txt, .jsonl, .parquet)"
    )
    assert not unreachable.calls


def test_a_cached_data_set_needs_no_hub(unreachable, tmp_path):
    (tmp_path / "datasets--owner--set").mkdir()
    assert list(hub_documents("owner/set", download=True)) == ["a", "b", "c"]
    with pytest.raises(CalibrationError, match="cannot be read from the hub"):
        hub_documents("owner/set", download=False)


def test_rows_without_the_field_are_named(fake_hub):
    fake_hub.rows = [{"body": "a"}]
    with pytest.raises(CalibrationError, match=r"^owner/set, row 1: there is no 'text' field, only 'body'"):
        list(hub_documents("owner/set", download=False))


def test_what_is_wrong_is_known_without_reading(unreachable, tmp_path):
    assert hub_problem("owner/set:part") == "ConnectionError: Name or service not known"
    (tmp_path / "datasets--owner--set").mkdir()
    assert hub_problem("owner/set:part") is None


def test_nothing_is_wrong_with_a_data_set_that_answers(fake_hub, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: asked.append(name))
    assert hub_problem("owner/set:part") is None
    assert asked == ["owner/set"]
