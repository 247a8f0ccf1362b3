import resource
import subprocess
import sys

import pytest

from eggs_ptp import api
from eggs_ptp.cli.main import main
from eggs_ptp.cli.program import app

VERBS = (
    "prune",
    "plan",
    "verify",
    "diagnose",
    "export",
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


def test_help_is_quick_and_imports_nothing_heavy():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = child("import sys; from eggs_ptp.cli.main import main; sys.exit(main(['--help']))")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert all(f" {verb} " in done.stdout for verb in VERBS)
    # Processor time, so that other work on the machine cannot fail this.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    done = child(
        "import sys; from eggs_ptp.cli.main import main\n"
        f"for verb in {VERBS}: assert main([verb, '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr


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


def test_errors_show_where_they_arose_when_asked(eggs, tmp_path):
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
    done = child(
        "import builtins, sys\n"
        "from eggs_ptp.cli.main import main\n"
        "imported = builtins.__import__\n"
        "def interrupted(name, *more):\n"
        "    if name == 'typer':\n"
        "        raise KeyboardInterrupt\n"
        "    return imported(name, *more)\n"
        "builtins.__import__ = interrupted\n"
        "sys.exit(main(['--version']))"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "eggs: interrupted\n")


def test_an_error_leaves_stdout_empty_also_where_json_was_asked_for(eggs, tmp_path):
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
def test_what_the_machine_refuses_is_one_line(eggs, monkeypatch, error, line):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(api, "plan", fail)
    ran = eggs("plan", "demo")
    assert (ran.code, ran.out, ran.err) == (2, "", line)


def test_names_of_files_that_are_no_text_are_refused(eggs):
    assert eggs("plan", "mod\udcff").error == (
        "'mod\\udcff': expected words in UTF-8, which records and cards are written in; rename the file"
    )


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError])
def test_faults_of_ours_keep_their_traceback(monkeypatch, kind):
    def fail(*arguments, **options):
        raise kind("ours")

    monkeypatch.setattr(api, "plan", fail)
    with pytest.raises(kind, match="ours"):
        main(["plan", "demo"])


def test_a_reader_that_goes_away_is_no_error():
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
