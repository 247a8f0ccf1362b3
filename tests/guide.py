"""The pages of docs/guides, taken apart: their files, commands and tables."""

import re
import shlex
from pathlib import Path

GUIDES = Path(__file__).parents[1] / "docs" / "guides"


class Guide:
    """A page: `files` by the name in their first line, `commands` (shell lines) in order, tables by their head."""

    def __init__(self, name: str) -> None:
        self.text = (GUIDES / f"{name}.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", self.text, re.S)
        self.files = dict(blocks)
        self.commands = [
            line for block in re.findall(r"```sh\n(.*?)```", self.text, re.S) for line in block.splitlines()
        ]

    def eggs_commands(self) -> list[list[str]]:
        """The words after `eggs` of each command that starts with it."""
        words = map(shlex.split, self.commands)
        return [command[1:] for command in words if command[0] == "eggs"]

    def write(self, folder: Path) -> Path:
        """Write all files below `folder`, those of the package too."""
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return folder

    def run(self, name: str) -> dict[str, object]:
        """Execute a Python file of the page; returns its names."""
        names: dict[str, object] = {"__name__": Path(name).stem}
        exec(compile(self.files[name], name, "exec"), names)  # noqa: S102
        return names

    def rows(self, head: str) -> list[list[str]]:
        """The cells of the table whose head starts with this cell."""
        lines = self.text[self.text.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
        return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def code(cell: str) -> str:
    """A cell without the marks of code."""
    return cell.removeprefix("`").removesuffix("`")
