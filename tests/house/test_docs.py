"""README and docs name every verb and option, method and error that there is."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from eggs_ptp.cli.main import app
from eggs_ptp.method.catalogue import METHODS

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


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_in_the_readme_with_its_source(method):
    (row,) = [line for line in README.splitlines() if line.startswith("|") and f"`{method}`" in line]
    assert METHODS[method].source.split(",")[0] in row or "the same" in row


def test_verbs_of_the_docs_exist():
    named = set(
        re.findall(r"`?\beggs ([a-z]+)\b(?! NAME)", "\n".join(re.findall(r"`eggs [^`]*`|^eggs .*$", DOCS, re.M)))
    )
    assert named <= VERBS.keys()
    assert named
