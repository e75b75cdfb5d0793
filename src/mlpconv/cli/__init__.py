"""The command line: `mlpconv VERB ...`. A verb's module is imported only when that verb is asked for."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from cyclopts import App, CycloptsError, CycloptsPanel, Parameter, UnknownOptionError

from mlpconv import __version__
from mlpconv.errors import Interrupted, MlpconvError, first_line

__all__ = ["VERBS", "explain", "main", "make_app"]

FAILED, ASKED_WRONGLY = 1, 2
INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
DEBUG = "MLPCONV_DEBUG"
SYSTEMS = "Linux and macOS"
FIRST_STEPS = "Begin with `mlpconv train digits`; then `mlpconv train FOLDER`, one folder of images a class."

# Verb -> where it lives, and the line about it in `mlpconv --help`.
VERBS = {
    "train": ("mlpconv.cli.train:train", "Train a network on a named data set or on a folder of class folders."),
    "evaluate": ("mlpconv.cli.evaluate:evaluate", "Judge a model file on images it has not seen."),
    "predict": ("mlpconv.cli.predict:predict", "Say what is in image files."),
    "maps": ("mlpconv.cli.maps:maps", "Draw where in an image each class was seen."),
    "profile": ("mlpconv.cli.profile:profile", "Count parameters, work and memory, layer by layer."),
    "surgery": ("mlpconv.cli.surgery:surgery", "Rewrite a network so that it computes the same, with proof."),
    "data": ("mlpconv.cli.data:app", "List the data sets, or prepare one."),
}

DISK_TROUBLE = {
    errno.ENOSPC: "the disk is full: free some space, or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another folder",
    errno.EROFS: "the disk is read-only: choose a folder that can be written",
    errno.EACCES: "permission denied: choose a path that you may read and write",
    errno.EPERM: "operation not permitted: choose a path that you may read and write",
    errno.EMFILE: "too many files are open: raise the limit with ulimit -n",
}


def make_app(asked: str | None = None) -> App:
    """The commands; the verb asked for explains itself by its own docstring, the others by their line in VERBS."""
    app = App(
        name="mlpconv",
        version=__version__,
        help="Network In Network on your own images: train it, judge it, look inside it.",
        help_epilogue=None if asked in VERBS else FIRST_STEPS,
        default_parameter=Parameter(negative_iterable=(), show_default=_default_worth_saying),
        help_format="plaintext",  # markdown would cost a tenth of the start-up
        suppress_keyboard_interrupt=False,
        error_formatter=_panel,
    )
    for position, (verb, (path, line)) in enumerate(VERBS.items()):
        app.command(path, name=verb, help=None if verb == asked else line, sort_key=position)
    return app


def _panel(error: CycloptsError) -> object:
    """What is shown of a wrong command line: to an unknown option that a recipe has as a setting, how to give it."""
    words = list(error.root_input_tokens or ())
    if isinstance(error, UnknownOptionError) and words[:1] == ["train"]:
        from mlpconv.cli.train import hint

        option = error.token.keyword or error.token.value
        if advice := hint(option, words):
            return CycloptsPanel(f"Unknown option: {option}. {advice}.")
    return CycloptsPanel(error)


def _default_worth_saying(value: object) -> str | None:
    """What `--help` says of a default: nothing where an option is merely off or empty."""
    return None if value is None or value is False or value == () else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 asked wrongly, 130 interrupted.

    Every failure is one sentence on stderr; with MLPCONV_DEBUG=1 the exception is raised instead.
    """
    # Threads that wait for one another by spinning take the time that a busy machine would have had for the work; those
    # that sleep at once take long to wake. A moment's spinning (about 30 microseconds) avoids both.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    words = list(sys.argv[1:] if argv is None else argv)
    _print_any_letter()
    try:
        result = make_app(words[0] if words else None)(words, exit_on_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError:  # cyclopts has said what is wrong
        return ASKED_WRONGLY
    except BrokenPipeError:  # the reader has gone, like `| head`
        _drop_stdout()
        return FAILED
    except SystemExit as leaving:  # rich leaves this way when its reader has gone
        return leaving.code if isinstance(leaving.code, int) else FAILED
    except Interrupted as stop:
        _say(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        _say("interrupted.")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        sentence, code = explain(error)
        _say(sentence)
        return code
    return result if isinstance(result, int) else 0


def explain(error: Exception) -> tuple[str, int]:
    """Any exception as one sentence for a person, and the exit code that goes with it."""
    if isinstance(error, MlpconvError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return _explain_os_error(error), FAILED
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
        return "out of memory: try smaller batches, fewer or smaller images, or a smaller network.", FAILED
    cause = error.__cause__ or error  # cyclopts wraps what a verb's module could not import
    if isinstance(cause, ModuleNotFoundError) and cause.name and not cause.name.startswith("mlpconv"):
        return _explain_missing(cause.name), FAILED
    return f"this is a bug in mlpconv ({type(error).__name__}: {first_line(error)}); {DEBUG}=1 shows where.", FAILED


def _explain_missing(module: str) -> str:
    """What to do about a module that cannot be imported: Python's own cannot be installed."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return f"this Python has no module {module!r}, which {SYSTEMS} have: run mlpconv there (on Windows, in WSL)."
    return f"the Python package {module!r} is missing: install it with pip install {module}"


def _explain_os_error(error: OSError) -> str:
    """What the system refused, on which file, and what to do."""
    reason = DISK_TROUBLE.get(error.errno or 0) or (error.strerror or str(error) or "input or output failed").lower()
    return f"{os.fsdecode(error.filename)}: {reason}." if isinstance(error.filename, str | bytes) else f"{reason}."


def _say(sentence: str) -> None:
    """One line on stderr; a closed stderr is nobody's loss."""
    with suppress(OSError, ValueError):
        print(f"mlpconv: {sentence}", file=sys.stderr, flush=True)


def _print_any_letter() -> None:
    """Let a file name that the terminal's encoding cannot show be printed escaped, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter's own flush at exit stays quiet."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
