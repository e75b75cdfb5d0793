"""`main` turns every way of failing into one sentence and the right exit code, and starts fast."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

import mlpconv
from mlpconv import cli
from mlpconv.__main__ import main as start
from mlpconv.cli.options import shipped_names
from mlpconv.errors import DataError, Interrupted, UsageError
from mlpconv.models.weights import pretrained_names

HEAVY = {"torch", "numpy", "PIL", "matplotlib", "safetensors"}
MLPCONV = [sys.executable, "-m", "mlpconv"]


@pytest.fixture
def run_failing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command line whose only verb raises the given exception; gives the exit code and what stderr got."""

    def run(error: BaseException | None, result: Any = None) -> tuple[int, str]:
        def verb() -> Any:
            if error is not None:
                raise error
            return result

        app = App(name="mlpconv", suppress_keyboard_interrupt=False)
        app.command(verb, name="verb")
        monkeypatch.setattr(cli, "make_app", lambda verb: app)
        code = cli.main(["verb"])
        return code, capsys.readouterr().err

    return run


FAILURES = {
    "ours": (DataError("photos: no images here."), 1, "photos: no images here."),
    "wrong usage": (UsageError("no such recipe."), 2, "no such recipe."),
    "disk full": (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 1, "runs/a: the disk is full"),
    "quota": (OSError(errno.EDQUOT, "Quota", "runs/a"), 1, "runs/a: the disk quota is used up"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "/x: permission denied"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", b"/x"), 1, "/x: the disk is read-only"),
    "a file in the way": (
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"),
        1,
        "a/b: a part of this path",
    ),
    "missing": (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"), 1, "a.png: no such file"),
    "nameless": (OSError("something"), 1, "something."),
    "memory": (MemoryError(), 1, "out of memory"),
    "torch memory": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"), 1, "out of memory"),
    "a package": (ModuleNotFoundError("No module named 'sklearn'", name="sklearn"), 1, "pip install sklearn"),
    "a package of an extra": (
        ModuleNotFoundError("No module named 'scipy'", name="scipy.stats"),
        1,
        "pip install 'mlpconv[claims]'",
    ),
    "Python's own module": (
        ModuleNotFoundError("No module", name="fcntl"),
        1,
        "lacks the module 'fcntl'",
    ),
    "a run that was stopped": (Interrupted("stopped after step 3; it is saved.", 15), 143, "stopped after step 3"),
    "a bug": (KeyError("weights\nand more"), 1, "this is a bug in mlpconv (KeyError: 'weights"),
    "a bug without words": (RuntimeError(), 1, "(RuntimeError: RuntimeError); MLPCONV_DEBUG=1"),
    "interrupt": (KeyboardInterrupt(), 130, "interrupted"),
}


@pytest.mark.parametrize(("error", "code", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_every_failure_is_one_sentence(run_failing: Any, error: BaseException, code: int, words: str) -> None:
    got, stderr = run_failing(error)
    assert got == code
    assert stderr.startswith("mlpconv: ")
    assert words in stderr
    assert stderr.count("\n") == 1


def test_an_import_that_hides_ctrl_c_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None

    app = App(name="mlpconv", suppress_keyboard_interrupt=False)
    app.command(verb, name="verb")
    monkeypatch.setattr(cli, "make_app", lambda verb: app)
    assert cli.main(["verb"]) == 130
    assert capsys.readouterr().err == "mlpconv: interrupted.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_verb_may_choose_its_exit_code(run_failing: Any) -> None:
    assert run_failing(None, 3)[0] == 3
    assert run_failing(None, None) == (0, "")


def test_debug_raises_the_exception(run_failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPCONV_DEBUG", "1")
    with pytest.raises(KeyError, match="weights"):
        run_failing(KeyError("weights"))


def test_a_missing_package_is_named() -> None:
    error = ImportError("Cannot import module 'mlpconv.cli.train'")
    error.__cause__ = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert cli.explain(error) == (
        "the Python package 'torch' is missing: install it with pip install 'mlpconv[train]'",
        1,
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["trian"], "train"), (["train", "--no-such-option"], "no-such-option"), (["evaluate"], "MODEL")],
)
def test_a_wrong_command_line_is_explained(words: list[str], expected: str, capsys: Any) -> None:
    assert cli.main(words) == 2
    assert expected in capsys.readouterr().err


DASHES = {
    "a file": (["predict", "digits", "-x.png"], "A path that starts with a dash is written ./-x.png"),
    "a file that exists": (["predict", "digits", "--x"], "A path that starts with a dash is written ./--x"),
    "data": (["train", "-photos.d"], "is written ./-photos.d"),
    "a value": (
        ["train", "digits", "--out", "-d"],
        "--out needs a value. A path that starts with a dash is written ./-d",
    ),
    "no value": (["train", "digits", "--out", "--resume"], "--out requires an argument"),
    "an option": (["predict", "digits", "--tpo", "3"], "Did you mean --top?"),
    "a setting": (["train", "digits", "-lr", "3"], "--set lr=3."),
}


@pytest.mark.parametrize(("words", "said"), DASHES.values(), ids=DASHES.keys())
def test_a_path_with_a_dash_is_explained(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "--x").touch()
    assert cli.main(words) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["predict", "digits", ""], "an argument"),
        (["train", "", "--epochs", "1"], "an argument"),
        (["train", "digits", "--out", ""], "an argument"),
        (["train", "digits", "--out="], "--out"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(words: list[str], name: str, capsys: Any) -> None:
    assert cli.main(words) == 2
    assert f"{name} is empty, as a shell variable that is not set" in capsys.readouterr().err


def test_the_version_is_printed(capsys: Any) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == mlpconv.__version__


def test_help_names_every_verb_in_the_order_of_use(capsys: Any) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    places = [out.index(f"│ {verb} ") for verb in cli.VERBS]
    assert places == sorted(places)
    assert "mlpconv train digits" in out


@pytest.mark.parametrize("words", [[], *([verb] for verb in cli.VERBS)], ids=lambda words: "-".join(words) or "top")
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from mlpconv.cli import main; code = main(sys.argv[1:]);"
        "print(*sorted(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: mlpconv" in done.stdout
    assert HEAVY.isdisjoint(done.stderr.split())


PLAIN_LINES = (
    "import sys; from cyclopts import App; from mlpconv import cli\n"
    "app = App(name='mlpconv')\n"
    "app.command(lambda: print('line\\n' * 100), name='lines')\n"
    "cli.make_app = lambda verb: app\n"
    "sys.exit(cli.main(['lines']))"
)


@pytest.mark.parametrize("command", [[*MLPCONV, "--help"], [sys.executable, "-c", PLAIN_LINES]], ids=["rich", "plain"])
def test_a_closed_pipe_is_quiet(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_name_that_the_terminal_cannot_encode_is_escaped() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*MLPCONV, "predict", "modèle.safetensors", "é.png"], capture_output=True, env=environment)
    assert done.returncode in (1, 2)
    assert b"\\xe8" in done.stderr
    assert b"bug" not in done.stderr


@pytest.mark.parametrize(
    ("number", "outcome"),
    [(signal.SIGINT, (130, "mlpconv: interrupted.\n")), (signal.SIGTERM, (143, "mlpconv: terminated.\n"))],
)
def test_interrupting_the_process_leaves_no_traceback(number: int, outcome: tuple[int, str]) -> None:
    code = (
        "import time, sys; from cyclopts import App; from mlpconv import cli\n"
        "app = App(name='mlpconv', suppress_keyboard_interrupt=False)\n"
        "@app.command\n"
        "def wait():\n    print('ready', flush=True)\n    time.sleep(300)\n"
        "cli.make_app = lambda verb: app\n"
        "sys.exit(cli.main(['wait']))"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        _, stderr = child.communicate(timeout=200)
    assert (child.returncode, stderr) == outcome


def test_ctrl_c_during_the_first_imports_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def interrupted(name: str, *rest: Any, **options: Any) -> Any:
        if name == "mlpconv.cli":
            raise KeyboardInterrupt
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert start() == 130


def test_help_lists_every_shipped_network(capsys: Any) -> None:
    assert shipped_names() == pretrained_names()
    for verb in ("predict", "maps", "evaluate"):
        assert cli.main([verb, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in shipped_names())
