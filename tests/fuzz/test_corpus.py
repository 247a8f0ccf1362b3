"""The corpus of the fuzzer, replayed; see fuzz/README.md."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORPUS = sorted((ROOT / "tests" / "fuzz" / "corpus").iterdir())


@pytest.fixture
def case(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "fuzz")
    import case

    return case


def test_every_input_is_read_or_refused_in_one_line(case, tmp_path):
    assert len(CORPUS) > 100
    assert sum(path.stat().st_size for path in CORPUS) < 1_000_000
    kinds = set()
    for path in CORPUS:
        case.write(path.read_bytes(), tmp_path / "model")
        for message in case.read_all(tmp_path / "model"):
            assert len(message) > 20, path.name
            kinds.add(message.partition(":")[0])
    assert kinds >= {"ModelError", "CheckpointError", "NumericsError", "PatternError"}


def test_seeds_are_valid_folders(case, tmp_path):
    """Each is read without errors, except for missing records and masks."""
    from seeds import seeds

    inputs = dict(seeds())
    assert {name.partition("-")[0] for name in inputs} == {"dense", "record", "masks", "index", "packed"}
    for name, content in inputs.items():
        case.write(content, tmp_path / "model")
        messages = [message for message in case.read_all(tmp_path / "model") if "mask file" not in message]
        if name.startswith(("record", "packed")):
            assert messages == [], name
        elif name != "masks":
            assert [message for message in messages if "no eggs.json says what to expect" not in message] == [], name


def test_exceptions_of_other_kinds_are_not_caught(case, tmp_path, monkeypatch):
    def broken(_):
        raise KeyError("x")

    monkeypatch.setattr(case, "read_config_file", broken)
    with pytest.raises(KeyError):
        list(case.read_all(tmp_path))
