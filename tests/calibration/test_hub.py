import sys
from types import SimpleNamespace

import huggingface_hub
import pytest

from eggs_ptp.calibration import hub
from eggs_ptp.calibration.hub import hub_documents, is_hub_name
from eggs_ptp.errors import CalibrationError


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """`datasets` replaced by a recorder, the hub reachable; `rows` is what it has."""
    seen = SimpleNamespace(rows=[{"text": "a"}, {"text": "b"}, {"text": "c"}], calls=[], asked=[])

    def load_dataset(*names, **options):
        seen.calls.append((names, options))
        return iter(seen.rows) if options["streaming"] else seen.rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: seen.asked.append(name))
    return seen


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


def test_c4_is_the_first_english_shard_streamed(loaded, monkeypatch):
    monkeypatch.setattr(hub, "FIRST", 2)
    assert list(hub_documents("allenai/c4", whole=False)) == ["a", "b"]
    files = {"train": "en/c4-train.00000-of-01024.json.gz"}
    assert loaded.calls == [(("allenai/c4", None), {"split": "train", "streaming": True, "data_files": files})]
    assert loaded.asked == ["allenai/c4"]


def test_the_whole_split_is_read_when_asked_for(loaded):
    found = hub_documents("owner/set:part", whole=True, split="test")
    assert loaded.calls == [(("owner/set", "part"), {"split": "test", "streaming": False})]
    assert (len(found), found[2], found[:2], list(found)) == (3, "c", ["a", "b"], ["a", "b", "c"])


def test_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CalibrationError) as caught:
        hub_documents("allenai/c4", whole=False)
    assert str(caught.value) == (
        "the text allenai/c4 is on the hub and needs the package 'datasets'; pip install datasets, or "
        "pass --calibration FILE with a text of yours (.txt, .jsonl, .parquet)"
    )


@pytest.fixture
def unreachable(loaded, monkeypatch):
    def refuse(self, name, timeout):
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    return loaded


@pytest.mark.parametrize("whole", [False, True])
def test_a_hub_that_cannot_be_reached(unreachable, whole):
    with pytest.raises(CalibrationError) as caught:
        hub_documents("allenai/c4", whole=whole, flag="--text")
    assert str(caught.value) == (
        "the text allenai/c4 cannot be read from the hub (ConnectionError: Name or service not known); "
        "pass --text FILE with a text of yours (.txt, .jsonl, .parquet)"
    )
    assert not unreachable.calls


def test_what_is_cached_needs_no_hub(unreachable, tmp_path):
    (tmp_path / "datasets--owner--set").mkdir()
    assert list(hub_documents("owner/set", whole=True)) == ["a", "b", "c"]
    with pytest.raises(CalibrationError, match="cannot be read from the hub"):
        hub_documents("owner/set", whole=False)


def test_rows_without_the_field_are_named(loaded):
    loaded.rows = [{"body": "a"}]
    with pytest.raises(CalibrationError, match=r"^owner/set, row 1: there is no 'text' field, only 'body'"):
        list(hub_documents("owner/set", whole=False))
