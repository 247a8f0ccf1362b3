"""Every command that a page shows is one that the program accepts, and every recipe one that it reads."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from eggs_ptp.cli.program import app
from eggs_ptp.comparison.file import read_comparison

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
VERBS: dict[str, Any] = typer.main.get_command(app).commands
ADDED = {"zeros"}  # by the guide for adding a verb


def blocks(page: Path) -> list[tuple[str, str]]:
    """The code blocks of a page with their languages."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def commands(page: Path) -> list[list[str]]:
    """The words after `eggs` in the shell blocks of a page, continued lines joined, comments and pipes removed."""
    shells = "\n".join(text for language, text in blocks(page) if language in ("", "sh", "console", "bash"))
    lines = re.findall(r"^(?:\$ )?(?:\w+=\S+ )*eggs ([a-z](?!.*\[OPTIONS\]).*)$", shells.replace("\\\n", " "), re.M)
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        stop = next((place for place, word in enumerate(words) if word in (">", "|", "&&", "[what", "...")), len(words))
        commands.append(words[:stop])
    return commands


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_program_accepts_every_command(page):
    for verb, *words in commands(page):
        if verb not in ADDED:
            VERBS[verb].make_context(verb, words)  # raises for unknown options and missing arguments


@pytest.mark.parametrize("page", ["quickstart.md", "comparing.md", "guides/adding-a-score.md"])
def test_every_recipe_can_be_read(page, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for language, text in blocks(ROOT / "docs" / page):
        if language == "python" and text.startswith("# my_scores.py"):
            (tmp_path / "my_scores.py").write_text(text)
    recipes = [text for language, text in blocks(ROOT / "docs" / page) if language == "toml"]
    assert recipes
    for text in recipes:
        (tmp_path / "recipe.toml").write_text(text)
        assert read_comparison(tmp_path / "recipe.toml").rows
