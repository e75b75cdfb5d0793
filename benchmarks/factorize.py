"""The cost of lower ranks: error against multiply-adds, by weights and by activations, before and after fine-tuning.

    python benchmarks/factorize.py                 the shipped nin_cifar10, and a wide network on the digits
    python benchmarks/factorize.py --draw          only the plot and the tables, from the stored results

Ranks are chosen and fitted on training images; errors are measured on held-out images, as by `mlpconv evaluate`.
Throughput and latency are those of `Classifier.predict`, alternating with the original. The wide network is trained
first and stored in `--runs`. Writes results/factorize.json after every row, docs/images/factorize.png and the tables of
docs/surgery.md; networks that `--models` does not name keep their results.
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
"""Number of images for measuring the lost variance."""
JUDGED = {"nin_cifar10": RESULTS / "nin_cifar10-40000.safetensors"}
"""The shipped network was trained on all images; this one was trained with the same recipe on a training split."""
MARKED = "<!-- factorize: written by benchmarks/factorize.py -->\n{}<!-- factorize: end -->"


@dataclass(frozen=True)
class Case:
    """A trained network, the images to fit ranks to, held-out images, and the first of these preprocessed."""

    classifier: Any
    fit: list[Any]
    prepared: list[Any]
    held_out: Any


def main() -> None:
    """Measure each network at each budget, write the results and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["nin_cifar10", "wide"])
    parser.add_argument("--budgets", nargs="*", type=float, default=[0.75, 0.5, 0.33, 0.25])
    parser.add_argument("--fit", type=int, default=1024, help="training images to fit to")
    parser.add_argument("--judged", type=int, default=2000, help="held-out images to evaluate on")
    parser.add_argument("--steps", type=int, default=100, help="fine-tuning steps of 64 images")
    parser.add_argument("--wide", default="digits", help="data of the wide network")
    parser.add_argument("--width", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--root", type=Path, help="folder of the data sets; default: the cache or $MLPCONV_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs/factorize"))
    parser.add_argument("--draw", action="store_true", help="only draw the stored results")
    arguments = parser.parse_args()
    if not arguments.draw:
        measure(arguments)
    draw(json.loads((RESULTS / "factorize.json").read_text("utf-8")))


def measure(arguments: argparse.Namespace) -> None:
    """Measure all rows and write results/factorize.json."""
    import torch

    previous = RESULTS / "factorize.json"
    networks = json.loads(previous.read_text("utf-8"))["result"]["networks"] if previous.is_file() else {}
    about = {"threads": torch.get_num_threads(), "fit": arguments.fit, "steps": arguments.steps}
    about["command"] = shlex.join(["python", "benchmarks/factorize.py", *sys.argv[1:]])
    for name in arguments.models:
        case = open_case(name, arguments)
        networks[name] = result = {"rows": []} | about | original(name, case, arguments)
        for budget in arguments.budgets:
            for by in WAYS:
                result["rows"].append(row(case, budget, by, arguments.steps))
                print(f"{name} {by} {budget:g}: " + summary(result["rows"][-1]), flush=True)
                path = write_result("factorize", {"networks": networks})
    print(f"written to {path}")


def open_case(name: str, arguments: argparse.Namespace) -> Case:
    """Return the network with folded batch norms, and its images."""
    import numpy as np

    import mlpconv
    from mlpconv.cli.factorize import prepare_images
    from mlpconv.data import Split
    from mlpconv.data.as_trained import open_as_trained
    from mlpconv.models.folding import fold_norm

    if name == "wide":
        out = arguments.runs / f"{arguments.wide}-width-{arguments.width:g}"
        # Batch norm after a pool cannot always be folded.
        settings = {"width": arguments.width, "epochs": arguments.epochs, "pool_first": False}
        resume = (out / "recipe.json").is_file()
        run = mlpconv.fit(arguments.wide, "fast", out=out, resume=resume, data_root=arguments.root, **settings)
        trained = run.classifier
    else:
        trained = mlpconv.load(JUDGED.get(name, name))
    parts = (trained.preprocessing, trained.classes, trained.input_size, trained.info)
    classifier = mlpconv.Classifier(fold_norm(trained.model), *parts)
    splits = open_as_trained(trained.info["data"], arguments.root, trained).splits
    # The digits have few validation images, so their test images count too. Other test sets are not used.
    names = ["val", "test"] if trained.info["data"] == "digits" else ["val"]
    images, labels = (
        np.concatenate([getattr(splits[n], part)[: arguments.judged] for n in names]) for part in ("images", "labels")
    )
    judged = Split(images, labels)
    return Case(
        classifier,
        list(prepare_images(classifier, splits["train"], arguments.fit)),
        list(prepare_images(classifier, judged, HELD)),
        judged,
    )


def original(name: str, case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the cost and the error of the original network."""
    info = case.classifier.info
    about = {"data": info["data"], "width": arguments.width if name == "wide" else 1, "judged": len(case.held_out)}
    return about | cost(case.classifier) | error_of(case, case.classifier)


def cost(classifier: Any) -> dict[str, int]:
    """Return the parameters, and the multiply-adds per image."""
    from mlpconv.analysis import profile

    totals = profile(classifier.model, classifier.input_size).totals
    return {"parameters": totals.params, "macs": totals.macs}


def error_of(case: Case, classifier: Any) -> dict[str, Any]:
    """Return the error on held-out images, with its interval."""
    from mlpconv.evaluation import evaluate

    result = evaluate(classifier, case.held_out)
    return {"error": result.error, "error_interval": list(result.error_interval)}


def row(case: Case, budget: float, by: str, steps: int) -> dict[str, Any]:
    """Return the row of one budget and one way of choosing ranks."""
    from mlpconv import surgery
    from mlpconv.surgery.lowrank.batches import as_batches
    from mlpconv.surgery.lowrank.distill import distill

    start = time.perf_counter()
    result = surgery.factorize(case.classifier.model, case.fit, budget, by=by, held_out=case.prepared, curve=False)
    seconds = time.perf_counter() - start
    factorized = like(case.classifier, result.model)
    values = {"by": by, "budget": budget, "seconds": seconds} | cost(factorized) | error_of(case, factorized)
    values["lost"] = result.report.details["error"]["after"]["output"]
    values["speed"] = speeds(case, factorized)
    network = copy.deepcopy(result.model)
    start = time.perf_counter()
    distill(network, case.classifier.model, as_batches(case.fit), steps)
    values["tuned"] = {"seconds": time.perf_counter() - start} | error_of(case, like(case.classifier, network))
    return values


def like(classifier: Any, network: Any) -> Any:
    """Return a copy of the classifier with another network."""
    import mlpconv

    parts = (classifier.preprocessing, classifier.classes, classifier.input_size)
    return mlpconv.Classifier(copy.deepcopy(network), *parts)


def speeds(case: Case, factorized: Any) -> dict[str, Any]:
    """Return the throughput (images/s) and the latency (ms) before and after, measured alternately."""
    pair = {"before": case.classifier, "after": factorized}
    medians: dict[str, Any] = {}
    for what, count in (("images_per_second", BATCH), ("ms", 1)):
        images = case.held_out.images[:count]
        times: dict[str, list[float]] = {name: [] for name in pair}
        for turn in range(ROUNDS + 1):
            for name, classifier in pair.items():
                start = time.perf_counter()
                classifier.predict(images)
                if turn:  # the first prepares the engine
                    times[name].append(time.perf_counter() - start)
        middle = {name: median(seconds) for name, seconds in times.items()}
        medians[what] = {n: count / s if what == "images_per_second" else 1000 * s for n, s in middle.items()}
        medians[what]["times"] = median([b / a for b, a in zip(times["before"], times["after"], strict=True)])
    return medians


def summary(row: dict[str, Any]) -> str:
    """Return a row as one line of text."""
    times = row["speed"]["images_per_second"]["times"]
    tuned = row["tuned"]["error"]
    return f"{row['macs']:,} multiply-adds, error {row['error']:.2%}, tuned {tuned:.2%}, {times:.2f} times as fast"


def draw(content: dict[str, Any]) -> None:
    """Draw the plot and write the tables of the page."""
    from mlpconv.plots import save_figure

    networks = content["result"]["networks"]
    save_figure(picture(networks), PICTURE)
    text = "".join(table(name, network) for name, network in networks.items())
    machine = content["machine"]
    text += f"{machine['cpu']}, PyTorch {machine['packages']['torch']}, {content['date']}.\n"
    page, count = re.subn(
        MARKED.format("(?:.*?)"), lambda _: MARKED.format(text), PAGE.read_text("utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{PAGE.name} has {count} places for the tables, expected one")
    PAGE.write_text(page, "utf-8")
    print(f"drawn to {PICTURE}, written to {PAGE}")


def title(name: str, network: dict[str, Any]) -> str:
    """Return the title of a network."""
    return f"{network['data']}, width {network['width']:g}" if name == "wide" else name


def table(name: str, network: dict[str, Any]) -> str:
    """Return the table of one network, one line per budget."""
    low, high = (f"{100 * bound:.1f}" for bound in network["error_interval"])
    text = (
        f"**{title(name, network)}**: {network['macs'] / 1e6:.3g} million multiply-adds, error {network['error']:.2%} "
        f"on {network['judged']:,} images that training never saw (95 % interval {low} to {high} %).\n\n"
        "| multiply-adds left | by weights | fine-tuned | by activations | fine-tuned | images/s | one image |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for budget in sorted({row["budget"] for row in network["rows"]}, reverse=True):
        ways = {row["by"]: row for row in network["rows"] if row["budget"] == budget}
        if len(ways) < len(WAYS):  # the run was interrupted between the two
            continue
        cells = [f"{ways['activations']['macs'] / network['macs']:.0%}"]
        for way in WAYS:
            cells += [f"{ways[way]['error']:.2%}", f"{ways[way]['tuned']['error']:.2%}"]
        cells += [f"× {ways['activations']['speed'][what]['times']:.2f}" for what in ("images_per_second", "ms")]
        text += f"| {' | '.join(cells)} |\n"
    threads = f"{network['threads']} thread{'s' * (network['threads'] > 1)}"
    about = f"Fitted to {network['fit']:,} training images, fine-tuned for {network['steps']} steps; {threads}"
    return text + f"\n{about}: `{network['command']}`.\n\n"


def picture(networks: dict[str, Any]) -> Any:
    """Plot error against multiply-adds, one panel per network, before and after fine-tuning."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from mlpconv.plots.style import ACCENT, BASE, QUIET, new_figure, styled

    @styled
    def drawn() -> Any:
        figure = new_figure(max(6.4, 4.6 * len(networks)), 4.2)
        grid = figure.add_gridspec(1, len(networks))
        for column, (name, network) in enumerate(networks.items()):
            axes = figure.add_subplot(grid[column])
            axes.set_title(title(name, network))
            axes.axhline(100 * network["error"], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="the original")
            for way, colour in (("weights", BASE), ("activations", ACCENT)):
                rows = sorted((row for row in network["rows"] if row["by"] == way), key=lambda row: row["budget"])
                kept = [100 * row["macs"] / network["macs"] for row in rows]
                style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 5}
                axes.plot(kept, [100 * row["error"] for row in rows], label=f"by {way}", **style)
                tuned = [100 * row["tuned"]["error"] for row in rows]
                axes.plot(kept, tuned, label=f"by {way}, fine-tuned", linestyle=":", markerfacecolor="white", **style)
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
