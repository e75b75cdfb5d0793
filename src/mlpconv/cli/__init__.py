"""The command line: `mlpconv VERB ...`. The module of a verb is imported only when that verb runs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from cyclopts import App, CycloptsError, CycloptsPanel, MissingArgumentError, Parameter, UnknownOptionError

from mlpconv import __version__
from mlpconv.cli.interruption import interruptible
from mlpconv.errors import Interrupted, MlpconvError, UsageError, first_line
from mlpconv.text import shell_path

__all__ = ["VERBS", "explain", "main", "make_app"]

FAILED, WRONG_USAGE = 1, 2
INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
DEBUG = "MLPCONV_DEBUG"
SYSTEMS = "Linux and macOS"
FIRST_STEPS = "Start with `mlpconv train digits`, then `mlpconv train FOLDER` with one folder of images per class."

# Verb -> its function, and its line in `mlpconv --help`.
VERBS = {
    "train": ("mlpconv.cli.train:train", "Train a network on a named data set or on a folder of class folders."),
    "evaluate": ("mlpconv.cli.evaluate:evaluate", "Evaluate a model on labelled images."),
    "predict": ("mlpconv.cli.predict:predict", "Classify image files."),
    "maps": ("mlpconv.cli.maps:maps", "Draw class activation maps (CAM): where in an image each class was seen."),
    "profile": ("mlpconv.cli.profile:profile", "Count parameters, multiply-adds and memory, layer by layer."),
    "surgery": ("mlpconv.cli.surgery:surgery", "Rewrite a network and prove that its outputs stay the same."),
    "search": ("mlpconv.cli.search:search", "Search recipe settings for networks of low error and low cost."),
    "claims": ("mlpconv.cli.claims:app", "Test what is said about 1x1 convolutions: experiments with a verdict."),
    "explore": ("mlpconv.cli.explore:explore", "See a network's numbers in the browser, and 1x1 arithmetic."),
    "data": ("mlpconv.cli.data:app", "List or download data sets, or pack images into tar shards."),
    "export": ("mlpconv.cli.export:export", "Write a model as ONNX or OpenVINO, in float32 or int8, and check it."),
    "serve": ("mlpconv.cli.serve:serve", "Serve an exported model over HTTP."),
}

# Package -> the extra that installs it.
EXTRAS = {
    "train": ("torch", "matplotlib"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "claims": ("scipy",),
    "search": ("optuna",),
    "parquet": ("pyarrow",),
    "openvino": ("openvino",),
    "vision": ("torchvision", "timm"),
    "serve": ("starlette", "uvicorn", "httptools", "prometheus_client"),
}

DISK_TROUBLE = {
    errno.ENOSPC: "the disk is full: free some space, or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another folder",
    errno.EROFS: "the disk is read-only: choose a folder that can be written",
    errno.EACCES: "permission denied: choose a path that you may read and write",
    errno.EPERM: "operation not permitted: choose a path that you may read and write",
    errno.ENOTDIR: "a part of this path is a file and not a folder: choose another path",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EMFILE: "too many files are open: raise the limit with ulimit -n",
}


def make_app(verb: str | None = None) -> App:
    """Return the command-line app, with the full help of `verb` and one line for each of the others."""
    app = App(
        name="mlpconv",
        version=__version__,
        help="Network In Network on your own images: train, evaluate, predict, draw class activation maps.",
        help_epilogue=None if verb in VERBS else FIRST_STEPS,
        default_parameter=Parameter(negative_iterable=(), show_default=_shown_default),
        help_format="markdown" if verb in VERBS else "plaintext",  # markdown joins lines; plain text starts faster
        suppress_keyboard_interrupt=False,
        error_formatter=_usage_error,
    )
    for position, (name, (path, line)) in enumerate(VERBS.items()):
        app.command(path, name=name, help=None if name == verb else line, sort_key=position)
    return app


def _usage_error(error: CycloptsError) -> object:
    """Format a usage error, with a hint for a setting of the recipe and for a path that starts with a dash."""
    words = list(error.root_input_tokens or ())
    if isinstance(error, UnknownOptionError):
        option = error.token.keyword or error.token.value
        if advice := _unknown_option_hint(option, words):
            return CycloptsPanel(f"Unknown option: {option}. {advice}")
    elif isinstance(error, MissingArgumentError) and error.keyword in words[:-1]:
        value = words[words.index(error.keyword) + 1]
        if value.startswith("-") and not value.startswith("--"):
            return CycloptsPanel(f"{error.keyword} needs a value. {_dash_hint(value)}")
    return CycloptsPanel(error)


def _unknown_option_hint(option: str, words: list[str]) -> str | None:
    """Return how to pass a setting of the recipe, or a path, that was taken for an option; None for anything else."""
    if words[:1] == ["train"]:
        from mlpconv.cli.train import hint

        if advice := hint(option, words):
            return f"{advice}."
    return _dash_hint(option) if os.path.lexists(option) or ("." in option and not option.startswith("--")) else None


def _dash_hint(path: str) -> str:
    return f"A path that starts with a dash is written {shell_path(path)}"


def _shown_default(value: object) -> str | None:
    """Return the default that `--help` shows, or None for an option that is off or empty."""
    return None if value is None or value is False or value == () else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 success, 1 failure, 2 wrong usage, 130 interrupted.

    Every failure prints one sentence to stderr; with MLPCONV_DEBUG=1 the exception is raised instead.
    """
    # Threads that wait by spinning take time from the work on a busy machine; threads that sleep at once are slow to
    # wake. Spinning for about 30 microseconds avoids both.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    words = list(sys.argv[1:] if argv is None else argv)
    _escape_unprintable()
    with interruptible() as signals:
        try:
            _refuse_empty(words)
            result = make_app(words[0] if words else None)(words, exit_on_error=False, result_action="return_value")
            sys.stdout.flush()
        except CycloptsError:  # cyclopts has printed the message
            return WRONG_USAGE
        except BrokenPipeError:  # the reader is gone, as with `| head`
            _drop_stdout()
            return FAILED
        except SystemExit as stop:  # rich exits this way when its reader is gone
            return stop.code if isinstance(stop.code, int) else FAILED
        except Interrupted as stop:
            _print_error(str(stop))
            return stop.exit_code
        except KeyboardInterrupt:
            _print_error("interrupted.")
            return INTERRUPTED
        except Exception as error:
            if os.environ.get(DEBUG):
                raise
            sentence, code = ("interrupted.", 128 + signals[0]) if signals else explain(error)
            _print_error(sentence)
            return code
    return result if isinstance(result, int) else 0


def _refuse_empty(words: Sequence[str]) -> None:
    """Raise UsageError for an empty argument, which as a path would be the current folder."""
    for word in words:
        if not word or (word.startswith("--") and word.endswith("=")):
            name = word.rstrip("=") or "an argument"
            raise UsageError(f"{name} is empty, as a shell variable that is not set: give a value, or leave it out.")


def explain(error: Exception) -> tuple[str, int]:
    """Return one sentence that explains an exception to the user, and the exit code."""
    if isinstance(error, MlpconvError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return _explain_os_error(error), FAILED
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
        return "out of memory: try smaller batches, fewer or smaller images, or a smaller network.", FAILED
    cause = error.__cause__ or error  # cyclopts wraps an import error of a verb's module
    if isinstance(cause, ModuleNotFoundError) and cause.name and not cause.name.startswith("mlpconv"):
        return _explain_missing(cause.name), FAILED
    bug = f"{type(error).__name__}: {first_line(error)}"
    return f"this is a bug in mlpconv ({bug}); {DEBUG}=1 shows the traceback.", FAILED


def _explain_missing(module: str) -> str:
    """Explain a missing module; those of the standard library cannot be installed."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return f"this Python lacks the module {module!r}: run mlpconv on {SYSTEMS} (on Windows, in WSL)."
    package = module.partition(".")[0]
    extra = next((name for name, packages in EXTRAS.items() if package in packages), None)
    wanted = package if extra is None else f"'mlpconv[{extra}]'"
    return f"the Python package {package!r} is missing: install it with pip install {wanted}"


def _explain_os_error(error: OSError) -> str:
    """Return the file, the reason and what to do."""
    reason = DISK_TROUBLE.get(error.errno or 0) or (error.strerror or str(error) or "input or output failed").lower()
    return f"{os.fsdecode(error.filename)}: {reason}." if isinstance(error.filename, str | bytes) else f"{reason}."


def _print_error(sentence: str) -> None:
    """Print a line to stderr, if stderr is open."""
    with suppress(OSError, ValueError):
        print(f"mlpconv: {sentence}", file=sys.stderr, flush=True)


def _escape_unprintable() -> None:
    """Print characters that the terminal's encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """Discard buffered output, so that the flush at exit raises nothing."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
