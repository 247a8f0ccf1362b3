"""README and docs name every verb and option, method and error that there is."""

import importlib.util
import re
from pathlib import Path
from typing import Any

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
    options = {tuple(option.opts) for verb in VERBS.values() for option in verb.params if option.opts[0][0] == "-"}
    assert len(options) > 10
    assert [" / ".join(opts) for opts in sorted(options) if len(missing(list(opts), DOCS)) == len(opts)] == []


def test_generated_pages_are_up_to_date(monkeypatch):
    """`python docs/make_pages.py` writes them."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("make_pages", ROOT / "docs" / "make_pages.py")
    assert spec
    assert spec.loader
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    pages = maker.pages()
    assert {"accuracy.md", "README.md"} < {path.name for path in pages}
    assert [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text] == []


def test_methods_that_the_readme_names_exist_and_the_default_is_among_them():
    named = set(re.findall(r"^\| `([^`]+)`", README, re.M))
    assert {DEFAULT_METHOD, "eggs", "eggs-max"} <= named
    assert named <= METHODS.keys()


def test_verbs_of_the_docs_exist():
    named = set(
        re.findall(r"`?\beggs ([a-z]+)\b(?! NAME)", "\n".join(re.findall(r"`eggs [^`]*`|^eggs .*$", DOCS, re.M)))
    )
    assert named <= VERBS.keys()
    assert named
