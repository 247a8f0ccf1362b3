"""Run verbs in this process."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from eggs_ptp.cli.main import main


class Result(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as one JSON document."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The error message, the last line on stderr (the plan may be printed before it)."""
        assert self.code == 2, self
        assert self.out == ""
        assert "Traceback" not in self.err
        *other_lines, last = self.err.splitlines()
        assert last.startswith("eggs: error: "), self.err
        assert not any(line.startswith("eggs: ") for line in other_lines)
        return last.removeprefix("eggs: error: ")


@pytest.fixture
def eggs(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`eggs("plan", folder)` runs the command."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run
