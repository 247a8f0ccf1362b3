import resource
import subprocess
import sys
import warnings

import pytest

from eggs_ptp import api
from eggs_ptp.cli.main import main
from eggs_ptp.cli.program import app
from eggs_ptp.errors import EggsError

VERBS = (
    "prune",
    "plan",
    "verify",
    "diagnose",
    "export",
    "adapt",
    "evaluate",
    "compare",
    "reproduce",
    "bench",
    "report",
    "generate",
    "methods",
    "doctor",
    "demo",
)


def child(code, **options):
    return subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=120, **options)


def test_the_verbs():
    assert tuple(command.callback.__name__ for command in app.registered_commands) == VERBS


def test_help_is_fast_and_imports_nothing_large():
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = child("import sys; from eggs_ptp.cli.main import main; sys.exit(main(['--help']))")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert result.returncode == 0
        assert all(f" {verb} " in result.stdout for verb in VERBS)
    # The least processor time of three: load does not count, but shared cores and caches lengthen single runs.
    assert min(seconds) < 1.0
    result = child(
        "import sys; from eggs_ptp.cli.main import main\n"
        f"for verb in {VERBS}: assert main([verb, '--help']) == 0\n"
        "large = {'torch', 'transformers', 'numpy', 'scipy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not large, large"
    )
    assert result.returncode == 0, result.stderr


def test_no_arguments_is_help(eggs):
    assert "Usage: eggs" in eggs().out
    assert eggs().code == 0


def test_version(eggs):
    assert eggs("--version").out.startswith("eggs 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prun", "x"], "No such command 'prun'. Did you mean 'prune'?; see eggs --help"),
        (["plan"], "Missing argument 'MODEL'; see eggs plan --help"),
        (["prune", "x"], "Missing option '--output' / '-o'; see eggs prune --help"),
        (["plan", "x", "--patern", "2:4"], "--pattern); see eggs plan --help"),
        (["plan", "x", "--nsamples", "many"], "--nsamples"),
        (["plan", "x", "--dtype", "int8"], "--dtype"),
        (["evaluate", "x", "--max-windows", "0"], "--max-windows"),
        (["generate", "x"], "Missing option '--prompt'"),
    ],
)
def test_usage_errors_are_one_line(eggs, arguments, message):
    assert message in eggs(*arguments).error


def test_debug_prints_the_traceback_of_an_error(eggs, tmp_path):
    for arguments in (["--debug", "plan", tmp_path], ["plan", tmp_path, "--debug"]):
        ran = eggs(*arguments)
        assert ran.code == 2
        assert "Traceback" in ran.err
        assert ran.err.splitlines()[-1].startswith("eggs: error: ")
    assert "Traceback" not in eggs("plan", tmp_path).err


def test_interruption_is_130(eggs, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "plan", interrupt)
    ran = eggs("plan", "demo")
    assert (ran.code, ran.out, ran.err) == (130, "", "eggs: interrupted\n")


def test_interruption_is_130_while_the_program_is_being_imported():
    result = child(
        "import builtins, sys\n"
        "from eggs_ptp.cli.main import main\n"
        "original_import = builtins.__import__\n"
        "def interrupted(name, *arguments):\n"
        "    if name == 'typer':\n"
        "        raise KeyboardInterrupt\n"
        "    return original_import(name, *arguments)\n"
        "builtins.__import__ = interrupted\n"
        "sys.exit(main(['--version']))"
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "eggs: interrupted\n")


def test_an_error_leaves_stdout_empty_with_json_too(eggs, tmp_path):
    assert "config.json" in eggs("plan", tmp_path, "--json").error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "out"), "eggs: error: [Errno 28] No space left on device: 'out'\n"),
        (MemoryError(), "eggs: error: MemoryError\n"),
        (
            RuntimeError("can't allocate memory: 5 bytes"),
            "eggs: error: no memory left: can't allocate memory: 5 bytes\n",
        ),
    ],
)
def test_errors_of_the_machine_are_one_line(eggs, monkeypatch, error, line):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(api, "plan", fail)
    ran = eggs("plan", "demo")
    assert (ran.code, ran.out, ran.err) == (2, "", line)


def test_file_names_that_are_not_utf8_are_refused(eggs):
    assert eggs("plan", "mod\udcff").error == (
        "'mod\\udcff': expected UTF-8, as records and model cards are written in; rename the file"
    )


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError])
def test_bugs_keep_their_traceback(monkeypatch, kind):
    def fail(*arguments, **options):
        raise kind("a bug")

    monkeypatch.setattr(api, "plan", fail)
    with pytest.raises(kind, match="a bug"):
        main(["plan", "demo"])


def test_a_closed_pipe_is_not_an_error():
    code = "import sys; from eggs_ptp.cli.main import main; input(); sys.exit(main(['--version']))"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        running.stdout.close()
        running.stdin.write("go\n")
        running.stdin.close()
        assert running.stderr.read() == ""
    assert running.returncode in (0, 1)


def warnings_of(result):
    return [line.removeprefix("eggs: warning: ") for line in result.err.splitlines() if "eggs: warning: " in line]


def test_an_old_name_of_an_option_works_with_one_line_of_warning(eggs, tiny):
    old = eggs("plan", tiny(), "--orders", "mask", "--json")
    assert old.err == "eggs: warning: --orders is now --permutation\n"
    assert old.json == {**eggs("plan", tiny(), "--permutation", "mask", "--json").json, "seconds": old.json["seconds"]}
    assert eggs("plan", tiny(), "--permutation", "mask").err == ""


def test_warnings_of_the_package_are_printed_once_each(eggs, monkeypatch):
    namespace = {"__name__": "eggs_ptp.somewhere"}
    source = "import warnings\ndef warn(text):\n    warnings.warn(text, FutureWarning, stacklevel=1)\n"
    exec(compile(source, "/x/eggs_ptp/somewhere.py", "exec"), namespace)  # noqa: S102

    def fail(*arguments, **options):
        for text in ("old", "older", "old"):
            namespace["warn"](text)
        raise EggsError("no plan")

    monkeypatch.setattr(api, "plan", fail)
    result = eggs("plan", "demo")
    assert warnings_of(result) == ["old", "older"]
    assert warnings_of(eggs("plan", "demo")) == ["old", "older"]


def test_warnings_of_other_packages_are_left_alone(eggs, monkeypatch):
    def fail(*arguments, **options):
        warnings.warn("not ours", FutureWarning, stacklevel=1)

    monkeypatch.setattr(api, "plan", fail)
    with pytest.raises(FutureWarning, match="not ours"):
        eggs("plan", "demo")
