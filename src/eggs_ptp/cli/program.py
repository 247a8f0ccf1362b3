"""The program `eggs`: its verbs, and what becomes of their errors."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from eggs_ptp.cli import (
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
from eggs_ptp.cli.launch import processes
from eggs_ptp.errors import EggsError

FAILED = 2

# Newer versions of typer carry a copy of click, so this class has two homes; what derives from it is public in both.
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


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"eggs {version('eggs-ptp')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the code an error arose. May stand anywhere.")
    ] = False,
) -> None:
    """One-shot N:M pruning of Hugging Face causal language models. Try: eggs demo."""


def run(arguments: Sequence[str]) -> int:
    """Run one verb and return the exit code, see `main`.

    Raises:
        KeyboardInterrupt: Ctrl-C, where typer has not made an exit code of it.
    """
    words = [word for word in arguments if word != "--debug"]
    rank, count = processes()
    if odd := [word for word in words if not _is_text(word)]:
        _say(f"error: {odd[0]!r}: expected words in UTF-8, which records and cards are written in; rename the file")
        return FAILED
    if count > 1 and words[:1] != ["prune"]:
        if rank:
            return 0  # torchrun would end the one that speaks
        _say(f"error: {count} processes were started, and only eggs prune shares its work; start one")
        return FAILED
    try:
        # What was asked for is `obj`, for a verb that keeps it in a record.
        code = app(words or ["--help"], prog_name="eggs", standalone_mode=False, obj=["eggs", *words])
        sys.stdout.flush()
    except typer.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _UsageError as error:
        if rank:
            return 0
        context = getattr(error, "ctx", None)
        see = f"; see {context.command_path} --help" if context else ""
        _say(f"error: {_one_line(error.format_message()).rstrip('.')}{see}")  # type: ignore[attr-defined]
    except RuntimeError as error:  # which torch's own, of lack of memory, is too
        if not isinstance(error, _mendable()) and "allocate memory" not in str(error):
            raise
        _fail(f"no memory left: {error}", debug="--debug" in arguments)
    except _mendable() as error:
        _fail(str(error) or type(error).__name__, debug="--debug" in arguments)
    else:
        return code or 0
    return FAILED


def _mendable() -> tuple[type[Exception], ...]:
    """What the user can do something about; the rest are faults of ours and keep their traceback."""
    torch = sys.modules.get("torch")
    return (EggsError, OSError, MemoryError, *([torch.OutOfMemoryError] if torch else []))


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # bytes of a file's name that are no UTF-8
        return False
    return True


def _fail(text: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    _say(f"error: {_one_line(text)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _say(text: str) -> None:
    print(f"eggs: {text}", file=sys.stderr)  # noqa: T201
