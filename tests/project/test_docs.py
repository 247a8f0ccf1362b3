"""README and docs name every verb and option, and only methods that exist; generated pages are up to date."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from eggs_ptp.cli.program import app
from eggs_ptp.method.catalogue import DEFAULT_METHOD, METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))) + README
VERBS: dict[str, Any] = typer.main.get_command(app).commands


def missing(names: list[str], text: str) -> list[str]:
    return [name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", text)]


def test_every_verb_is_in_the_readme():
    assert missing([f"eggs {verb}" for verb in VERBS], README) == []


def test_every_option_is_documented():
    options = {
        tuple(option.opts)
        for verb in VERBS.values()
        for option in verb.params
        if option.opts[0][0] == "-" and not option.hidden
    }
    assert len(options) > 10
    assert [" / ".join(opts) for opts in sorted(options) if len(missing(list(opts), DOCS)) == len(opts)] == []


GENERATED = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "by tools/docs/make_pages.py" in path.read_text(encoding="utf-8")
]


@pytest.fixture
def pages(monkeypatch):
    """The generators by page; `python tools/docs/make_pages.py` writes all of them."""
    monkeypatch.syspath_prepend(ROOT / "tools" / "docs")
    import make_pages

    return make_pages.PAGES


def test_every_generated_page_has_a_generator(pages):
    assert pages.keys() == set(GENERATED)
    assert {"accuracy.md", "README.md"} < {path.name for path in GENERATED}


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.stem)
def test_a_generated_page_is_up_to_date(pages, path):
    assert path.read_text(encoding="utf-8") == pages[path]()


def test_a_page_with_an_outdated_record_is_reported_and_not_written(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "tools" / "docs")
    import make_pages

    def fail():
        raise make_pages.OutdatedRecordError("expected current rows of eggs+")

    pages = {tmp_path / "docs" / "accuracy.md": fail, tmp_path / "docs" / "methods.md": lambda: "methods"}
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(make_pages, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(make_pages, "PAGES", pages)
    assert make_pages.main() == 1
    assert capsys.readouterr().err == "docs/accuracy.md was not written: expected current rows of eggs+\n"
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["methods.md"]


def test_methods_that_the_readme_names_exist_and_the_default_is_among_them():
    named = set(re.findall(r"^\| `([\w+-]+)` \|", README, re.M))
    assert {DEFAULT_METHOD, "eggs", "eggs-max"} <= named
    assert named <= METHODS.keys()


def test_verbs_of_the_docs_exist():
    commands = "\n".join(re.findall(r"`eggs [^`]*`|^eggs .*$", DOCS, re.M))
    named = set(re.findall(r"`?\beggs ([a-z]+)\b(?! NAME)", commands))
    assert named
    assert named <= VERBS.keys()
