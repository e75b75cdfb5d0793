"""`mlpconv explore`: see a network's numbers in the browser, and the arithmetic of 1x1 convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mlpconv.cli.options import DataDir, Switch, check_data_dir, shipped_names
from mlpconv.errors import UsageError

if TYPE_CHECKING:
    from mlpconv.explorer import Subject

__all__ = ["explore"]

PORT = 8230
ANSWER_SECONDS = 120.0  # the accuracy of an edited network on its held-out images may take a while
FAILED = 1


def explore(
    model: Annotated[
        str | None,
        Parameter(help=f"A model file, a run folder, or the name of a shipped network: {', '.join(shipped_names())}. "
                       "Without one, the page has the playground alone."),
    ] = None,
    /,
    *images: str,
    compare: str | None = None,
    evaluate: str | None = None,
    data_dir: DataDir = None,
    export: Path | None = None,
    port: int | None = None,
    open_browser: Annotated[bool, Parameter(name="--open", negative=())] = False,
    force: Switch = False,
) -> int:  # fmt: skip
    """Explore a network in the browser: every layer's channels, and behind any cell the sum that makes its value.

    The page is served on this machine alone, at 127.0.0.1, and loads nothing from elsewhere. Ctrl-C ends it.

    Parameters
    ----------
    images
        Image files, folders of images, or quoted patterns; the first 64 are used. Default: six held-out images, or a
        test pattern if there are none.
    compare
        A second model to show beside the first, on the same images.
    evaluate
        Named data set or folder whose held-out images the accuracy is measured on. Default: the data set that the
        network was trained on, if it is on this machine.
    export
        Write the page to this folder as a static site, and exit; it works from a file system and on any web server.
    port
        Port of the page. Default: 8230, or a free one if that is in use.
    open_browser
        Open the page in the default browser.
    force
        Overwrite an existing site.
    """
    if model is None and compare is not None:
        raise UsageError("--compare needs a MODEL to compare with: mlpconv explore MODEL --compare OTHER.")
    check_data_dir(data_dir, evaluate, "--evaluate")
    subject, complete = (None, True) if model is None else _subject(model, images, evaluate, data_dir)
    other = None if compare is None or subject is None else _beside(subject, compare, evaluate, data_dir)
    if export is not None:
        from mlpconv.explorer import export_site

        size = export_site(subject, export, other=other, force=force)
        print(f"Written: {export / 'index.html'} ({size / 1e6:.1f} MB)")
        return 0 if complete else FAILED
    _serve(subject, other, port, open_browser)
    return 0 if complete else FAILED


def _subject(model: str, images: tuple[str, ...], data: str | None, root: Path | None) -> tuple[Subject, bool]:
    """Return the network with its images, and whether every image could be read."""
    from mlpconv import inference
    from mlpconv.cli.paths import find_images
    from mlpconv.cli.reading import readable, say_left_out, say_skipped
    from mlpconv.explorer import Subject
    from mlpconv.explorer.held_out import find_held_out, some_images
    from mlpconv.explorer.subject import MAX_IMAGES

    classifier = inference.load(model)
    held_out, why = find_held_out(classifier, data, root)
    subject = Subject(classifier, model, held_out, why)
    if not images:
        for name, pixels in some_images(classifier, held_out):
            subject.add(pixels, name)
        return subject, True
    listing = find_images(images, recursive=True)
    say_left_out(listing)
    files = listing.files[:MAX_IMAGES]
    if len(files) < len(listing.files):
        say_skipped(f"all but the first {MAX_IMAGES} of {len(listing.files):,} images.")
    added = sum(1 for _ in readable(files, lambda file: subject.add(file, file.name)))
    if not added:
        from mlpconv.errors import ImageError

        raise ImageError("None of the images can be read.")
    return subject, added == len(files) and not listing.unreadable


def _beside(first: Subject, model: str, data: str | None, root: Path | None) -> Subject:
    """Return a second network with the images of the first."""
    from mlpconv import inference
    from mlpconv.explorer import Subject
    from mlpconv.explorer.held_out import find_held_out

    classifier = inference.load(model)
    subject = Subject(classifier, model, *find_held_out(classifier, data, root))
    for name, image in zip(first.names, first.images, strict=True):
        subject.add(image, name)
    return subject


def _serve(subject: Subject | None, other: Subject | None, port: int | None, open_browser: bool) -> None:
    """Serve the page until Ctrl-C; without --port, a port in use is no obstacle."""
    from mlpconv.deploy import Limits, serve_app
    from mlpconv.errors import ServerError
    from mlpconv.explorer import make_app

    def announce(address: str) -> None:
        print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
        if open_browser:
            import webbrowser

            webbrowser.open(address)

    def quiet(_entry: dict[str, Any]) -> None:
        """Log nothing: the page makes many requests."""

    app, limits = make_app(subject, other), Limits(answer_seconds=ANSWER_SECONDS)
    try:
        serve_app(app, port=PORT if port is None else port, limits=limits, log=quiet, announce=announce)
    except ServerError:
        if port is not None:
            raise
        serve_app(app, port=0, limits=limits, log=quiet, announce=announce)
