"""What lower ranks cost: error against multiply-adds, by weights and by activations, before and after fine-tuning.

    python benchmarks/factorize.py                 the shipped nin_cifar10, and a wide network on the digits
    python benchmarks/factorize.py --draw          only the picture and the page, from the results

Ranks are chosen and fitted on training images; errors are those on images that training never saw, as `mlpconv
evaluate` computes them. Speeds are those of `Classifier.predict`, in turn with the original's. The wide network is
trained first and kept in `--runs`. Writes results/factorize.json after every row, docs/images/factorize.png and the
tables of docs/surgery.md; networks that are not named with `--models` keep the results that they have.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, write_result

PAGE = RESULTS.parents[1] / "docs" / "surgery.md"
PICTURE = PAGE.parent / "images" / "factorize.png"
WAYS = ("weights", "activations")
ROUNDS = 5
BATCH = 64
HELD = 256
"""Images on which the loss of variance is measured."""
JUDGED = {"nin_cifar10": RESULTS / "nin_cifar10-40000.safetensors"}
"""What ships has seen every image: in its place the same recipe on a part of them."""
MARKED = "<!-- factorize: written by benchmarks/factorize.py -->\n{}<!-- factorize: end -->"


@dataclass(frozen=True)
class Case:
    """A trained network, the images to fit to, and those to judge on."""

    classifier: Any
    fit: list[Any]
    held: list[Any]
    judged: Any


def main() -> None:
    """Measure each network at each budget, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["nin_cifar10", "wide"])
    parser.add_argument("--budgets", nargs="*", type=float, default=[0.75, 0.5, 0.33, 0.25])
    parser.add_argument("--fit", type=int, default=1024, help="training images to fit to")
    parser.add_argument("--judged", type=int, default=2000, help="held-out images to judge on")
    parser.add_argument("--steps", type=int, default=100, help="steps of fine-tuning, a batch of 64 each")
    parser.add_argument("--wide", default="digits", help="data of the wide network")
    parser.add_argument("--width", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--root", type=Path, help="where the data lie, if not in the cache or $MLPCONV_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs/factorize"))
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    if not asked.draw:
        measured(asked)
    draw(json.loads((RESULTS / "factorize.json").read_text("utf-8")))


def measured(asked: argparse.Namespace) -> None:
    """Write results/factorize.json."""
    import torch

    before = RESULTS / "factorize.json"
    networks = json.loads(before.read_text("utf-8"))["result"]["networks"] if before.is_file() else {}
    about = {"threads": torch.get_num_threads(), "fit": asked.fit, "steps": asked.steps}
    about["command"] = shlex.join(["python", "benchmarks/factorize.py", *sys.argv[1:]])
    for name in asked.models:
        case = opened(name, asked)
        networks[name] = found = {"rows": []} | about | original(name, case, asked)
        for budget in asked.budgets:
            for by in WAYS:
                found["rows"].append(row(case, budget, by, asked.steps))
                print(f"{name} {by} {budget:g}: " + summary(found["rows"][-1]), flush=True)
                path = write_result("factorize", {"networks": networks})
    print(f"written to {path}")


def opened(name: str, asked: argparse.Namespace) -> Case:
    """The network with folded norms and its images."""
    import numpy as np

    import mlpconv
    from mlpconv.cli.factorize import prepare_images
    from mlpconv.data import Split
    from mlpconv.data.as_trained import open_as_trained
    from mlpconv.models.folding import fold_norm

    if name == "wide":
        out = asked.runs / f"{asked.wide}-width-{asked.width:g}"
        # A norm behind a pool cannot always be folded away.
        settings = {"width": asked.width, "epochs": asked.epochs, "pool_first": False}
        going_on = (out / "recipe.json").is_file()
        run = mlpconv.fit(asked.wide, "fast", out=out, resume=going_on, data_root=asked.root, **settings)
        trained = run.classifier
    else:
        trained = mlpconv.load(JUDGED.get(name, name))
    parts = (trained.preprocessing, trained.classes, trained.input_size, trained.info)
    classifier = mlpconv.Classifier(fold_norm(trained.model), *parts)
    splits = open_as_trained(trained.info["data"], asked.root, trained).splits
    # Few digits are held out: those of the test set are taken, too. Of other data the test set is not looked at.
    names = ["val", "test"] if trained.info["data"] == "digits" else ["val"]
    images, labels = (
        np.concatenate([getattr(splits[n], part)[: asked.judged] for n in names]) for part in ("images", "labels")
    )
    judged = Split(images, labels)
    return Case(
        classifier,
        list(prepare_images(classifier, splits["train"], asked.fit)),
        list(prepare_images(classifier, judged, HELD)),
        judged,
    )


def original(name: str, case: Case, asked: argparse.Namespace) -> dict[str, Any]:
    """The network as it is."""
    info = case.classifier.info
    about = {"data": info["data"], "width": asked.width if name == "wide" else 1, "judged": len(case.judged)}
    return about | cost(case.classifier) | judge(case, case.classifier)


def cost(classifier: Any) -> dict[str, int]:
    """Parameters and multiply-adds of an image."""
    from mlpconv.analysis import profile

    totals = profile(classifier.model, classifier.input_size).totals
    return {"parameters": totals.params, "macs": totals.macs}


def judge(case: Case, classifier: Any) -> dict[str, Any]:
    """Error on the images that training never saw."""
    from mlpconv.evaluation import evaluate

    found = evaluate(classifier, case.judged)
    return {"error": found.error, "error_interval": list(found.error_interval)}


def row(case: Case, budget: float, by: str, steps: int) -> dict[str, Any]:
    """One budget, one way."""
    from mlpconv import surgery
    from mlpconv.surgery.lowrank.batches import as_batches
    from mlpconv.surgery.lowrank.distill import distill

    began = time.perf_counter()
    result = surgery.factorize(case.classifier.model, case.fit, budget, by=by, held_out=case.held, curve=False)
    seconds = time.perf_counter() - began
    made = like(case.classifier, result.model)
    found = {"by": by, "budget": budget, "seconds": seconds} | cost(made) | judge(case, made)
    found["lost"] = result.report.details["error"]["after"]["output"]
    found["speed"] = speeds(case, made)
    network = copy.deepcopy(result.model)
    began = time.perf_counter()
    distill(network, case.classifier.model, as_batches(case.fit), steps)
    found["tuned"] = {"seconds": time.perf_counter() - began} | judge(case, like(case.classifier, network))
    return found


def like(classifier: Any, network: Any) -> Any:
    """A classifier with another network in it."""
    import mlpconv

    parts = (classifier.preprocessing, classifier.classes, classifier.input_size)
    return mlpconv.Classifier(copy.deepcopy(network), *parts)


def speeds(case: Case, made: Any) -> dict[str, Any]:
    """Images a second in batches, and milliseconds of one image, before and after, measured in turn."""
    pair = {"before": case.classifier, "after": made}
    found: dict[str, Any] = {}
    for what, count in (("images_per_second", BATCH), ("ms", 1)):
        images = case.judged.images[:count]
        times: dict[str, list[float]] = {name: [] for name in pair}
        for turn in range(ROUNDS + 1):
            for name, classifier in pair.items():
                began = time.perf_counter()
                classifier.predict(images)
                if turn:  # the first prepares the engine
                    times[name].append(time.perf_counter() - began)
        middle = {name: median(each) for name, each in times.items()}
        found[what] = {n: count / s if what == "images_per_second" else 1000 * s for n, s in middle.items()}
        found[what]["times"] = median([b / a for b, a in zip(times["before"], times["after"], strict=True)])
    return found


def summary(found: dict[str, Any]) -> str:
    """A row as a line."""
    times = found["speed"]["images_per_second"]["times"]
    tuned = found["tuned"]["error"]
    return f"{found['macs']:,} multiply-adds, error {found['error']:.2%}, tuned {tuned:.2%}, {times:.2f} times as fast"


def draw(content: dict[str, Any]) -> None:
    """The picture and the tables of the page."""
    from mlpconv.plots import save_figure

    networks = content["result"]["networks"]
    save_figure(picture(networks), PICTURE)
    text = "".join(table(name, found) for name, found in networks.items())
    machine = content["machine"]
    text += f"{machine['cpu']}, PyTorch {machine['packages']['torch']}, {content['date']}.\n"
    page, count = re.subn(
        MARKED.format("(?:.*?)"), lambda _: MARKED.format(text), PAGE.read_text("utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"there are {count} places for the tables in {PAGE.name}; one is needed")
    PAGE.write_text(page, "utf-8")
    print(f"drawn to {PICTURE}, written to {PAGE}")


def title(name: str, found: dict[str, Any]) -> str:
    """A network in words."""
    return f"{found['data']}, width {found['width']:g}" if name == "wide" else name


def table(name: str, found: dict[str, Any]) -> str:
    """One network: a line a budget."""
    low, high = (f"{100 * each:.1f}" for each in found["error_interval"])
    text = (
        f"**{title(name, found)}**: {found['macs'] / 1e6:.3g} million multiply-adds, error {found['error']:.2%} on "
        f"{found['judged']:,} images that training never saw (95 % interval {low} to {high} %).\n\n"
        "| multiply-adds left | by weights | fine-tuned | by activations | fine-tuned | images/s | one image |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for budget in sorted({each["budget"] for each in found["rows"]}, reverse=True):
        ways = {each["by"]: each for each in found["rows"] if each["budget"] == budget}
        if len(ways) < len(WAYS):  # the run was stopped between the two
            continue
        cells = [f"{ways['activations']['macs'] / found['macs']:.0%}"]
        for way in WAYS:
            cells += [f"{ways[way]['error']:.2%}", f"{ways[way]['tuned']['error']:.2%}"]
        cells += [f"× {ways['activations']['speed'][what]['times']:.2f}" for what in ("images_per_second", "ms")]
        text += f"| {' | '.join(cells)} |\n"
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    about = f"Fitted to {found['fit']:,} training images, fine-tuned for {found['steps']} steps; {threads}"
    return text + f"\n{about}: `{found['command']}`.\n\n"


def picture(networks: dict[str, Any]) -> Any:
    """A panel a network: error against multiply-adds, both ways, before and after fine-tuning."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from mlpconv.plots.style import ACCENT, BASE, QUIET, new_figure, styled

    @styled
    def drawn() -> Any:
        figure = new_figure(max(6.4, 4.6 * len(networks)), 4.2)
        grid = figure.add_gridspec(1, len(networks))
        for column, (name, found) in enumerate(networks.items()):
            axes = figure.add_subplot(grid[column])
            axes.set_title(title(name, found))
            axes.axhline(100 * found["error"], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="the original")
            for way, colour in (("weights", BASE), ("activations", ACCENT)):
                rows = sorted((each for each in found["rows"] if each["by"] == way), key=lambda each: each["budget"])
                kept = [100 * each["macs"] / found["macs"] for each in rows]
                style = {"color": colour, "marker": "o", "markersize": 5}
                axes.plot(kept, [100 * each["error"] for each in rows], label=f"by {way}", **style)
                distill = [100 * each["tuned"]["error"] for each in rows]
                axes.plot(kept, distill, label=f"by {way}, fine-tuned", linestyle=":", markerfacecolor="white", **style)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="y", which="minor", length=0)
            axes.set_xlim(0, 102)
            axes.grid(axis="y")
            axes.set_xlabel("multiply-adds that are left, %")
        figure.axes[0].set_ylabel("error on unseen images, %")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        return figure

    return drawn()


if __name__ == "__main__":
    main()
