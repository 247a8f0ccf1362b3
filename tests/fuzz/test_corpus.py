"""What fuzzing has found worth keeping, read again; fuzz/README.md says how it came about."""

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
        for words in case.read_all(tmp_path / "model"):
            assert len(words) > 20, path.name
            kinds.add(words.partition(":")[0])
    assert kinds >= {"ModelError", "CheckpointError", "NumericsError", "PatternError"}


def test_seeds_are_what_they_seem(case, tmp_path):
    """Each is read as a whole but for what it lacks: a record, or masks."""
    from seeds import seeds

    found = dict(seeds())
    assert {name.partition("-")[0] for name in found} == {"dense", "record", "masks", "index", "packed"}
    for name, content in found.items():
        case.write(content, tmp_path / "model")
        words = [text for text in case.read_all(tmp_path / "model") if "mask file" not in text]
        if name.startswith(("record", "packed")):
            assert words == [], name
        elif name != "masks":
            assert [text for text in words if "no eggs.json says what to expect" not in text] == [], name


def test_a_fault_that_is_not_ours_comes_through(case, tmp_path, monkeypatch):
    def broken(_):
        raise KeyError("x")

    monkeypatch.setattr(case, "_config", broken)
    with pytest.raises(KeyError):
        list(case.read_all(tmp_path))
