"""The program `eggs`: its verbs, and how their errors and warnings are printed."""

import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer

from eggs_ptp.cli import (
    adapt,
    bench,
    compare,
    demo,
    diagnose,
    doctor,
    evaluate,
    export,
    generate,
    methods,
    plan,
    prune,
    report,
    reproduce,
    verify,
)
from eggs_ptp.cli.torchrun_command import rank_and_world_size
from eggs_ptp.errors import EggsError

FAILED = 2
_PACKAGE = f"{os.sep}eggs_ptp{os.sep}"

# Recent versions of typer bundle click, so this class has two import paths; a subclass of it is public in both.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="eggs",
    help="One-shot N:M pruning of Hugging Face causal language models. Try: eggs demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    prune.prune,
    plan.plan,
    verify.verify,
    diagnose.diagnose,
    export.export,
    adapt.adapt,
    evaluate.evaluate,
    compare.compare,
    reproduce.reproduce,
    bench.bench,
    report.report,
    generate.generate,
    methods.methods,
    doctor.doctor,
    demo.demo,
):
    app.command()(verb)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"eggs {version('eggs-ptp')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error; allowed anywhere in the command.")
    ] = False,
) -> None:
    """One-shot N:M pruning of Hugging Face causal language models. Try: eggs demo."""


def run(arguments: Sequence[str]) -> int:
    """Run one verb.

    Args:
        arguments: The command line without `eggs`.

    Returns:
        The exit code; see `main`.

    Raises:
        KeyboardInterrupt: Ctrl-C, where typer has not turned it into an exit code.
    """
    words = [word for word in arguments if word != "--debug"]
    rank, world_size = rank_and_world_size()
    if not_utf8 := [word for word in words if not _is_utf8(word)]:
        _print(f"error: {not_utf8[0]!r}: expected UTF-8, as records and model cards are written in; rename the file")
        return FAILED
    if world_size > 1 and words[:1] != ["prune"]:
        if rank:
            return 0  # an exit code other than 0 would make torchrun end the process that prints the error
        _print(f"error: got {world_size} processes, but only eggs prune shares its work among several; start one")
        return FAILED
    try:
        with _warnings_as_lines(quiet=rank > 0):
            # `obj` is the whole command, for verbs that record it.
            code = app(words or ["--help"], prog_name="eggs", standalone_mode=False, obj=["eggs", *words])
        sys.stdout.flush()
    except typer.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:  # the reader of stdout, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _UsageError as error:
        if rank:
            return 0
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        _print(f"error: {_one_line(error.format_message()).rstrip('.')}{hint}")  # type: ignore[attr-defined]
    except RuntimeError as error:  # also how torch reports that memory on the CPU has run out
        if not isinstance(error, _user_errors()) and "allocate memory" not in str(error):
            raise
        _print_error(f"no memory left: {error}", debug="--debug" in arguments)
    except _user_errors() as error:
        _print_error(str(error) or type(error).__name__, debug="--debug" in arguments)
    else:
        return code or 0
    return FAILED


@contextmanager
def _warnings_as_lines(*, quiet: bool) -> Iterator[None]:
    """Print each FutureWarning of this package once, as one line; other warnings are left as they are."""
    printed: set[str] = set()
    with warnings.catch_warnings():
        show_other = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> Any:
            if not issubclass(category, FutureWarning) or _PACKAGE not in filename:
                return show_other(message, category, filename, lineno, file, line)
            text = _one_line(str(message))
            if text not in printed and not quiet:
                _print(f"warning: {text}")
            printed.add(text)
            return None

        warnings.showwarning = show
        warnings.filterwarnings("always", category=FutureWarning, module=r"eggs_ptp(\.|$)")
        yield


def _user_errors() -> tuple[type[Exception], ...]:
    """Return the errors that the user can do something about; others are bugs and keep their traceback."""
    torch = sys.modules.get("torch")
    return (EggsError, OSError, MemoryError, *([torch.OutOfMemoryError] if torch else []))


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # bytes of a file name that are not UTF-8
        return False
    return True


def _print_error(text: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    _print(f"error: {_one_line(text)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _print(text: str) -> None:
    print(f"eggs: {text}", file=sys.stderr)  # noqa: T201
