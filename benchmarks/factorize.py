"""Measure low-rank factorization: error against multiply-adds, by weights and by activations, before and after tuning.

    python benchmarks/factorize.py                 nin_cifar10, and a wide network on the digits
    python benchmarks/factorize.py --draw          only the figure and the page, from the results

Ranks are calibrated on training images; errors are measured on unseen images, as `mlpconv evaluate` does. Speed is that
of `Classifier.predict`, alternating with the original. The wide network is trained first and kept in `--runs`. Writes
results/factorize.json after every row, docs/images/factorize.png and the tables of docs/surgery.md; networks not named
with `--models` keep their results.
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
HELD_OUT = 256
"""Number of images on which the lost variance is measured."""
TRAINED = {"nin_cifar10": RESULTS / "nin_cifar10-40000.safetensors"}
"""Trained with the recipe of the shipped weights, but not on all images."""
MARKED = "<!-- factorize: written by benchmarks/factorize.py -->\n{}<!-- factorize: end -->"


@dataclass(frozen=True)
class Case:
    """A trained network, its calibration and held-out batches, and the unseen images to evaluate on."""

    classifier: Any
    calibration: list[Any]
    held_out: list[Any]
    unseen: Any


def main() -> None:
    """Measure each network at each budget, and write the results, the figure and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["nin_cifar10", "wide"])
    parser.add_argument("--budgets", nargs="*", type=float, default=[0.75, 0.5, 0.33, 0.25])
    parser.add_argument("--fit", type=int, default=1024, help="number of calibration images")
    parser.add_argument("--held-out", type=int, default=2000, help="number of unseen images to evaluate on")
    parser.add_argument("--steps", type=int, default=100, help="fine-tuning steps, with batches of 64")
    parser.add_argument("--wide", default="digits", help="data set of the wide network")
    parser.add_argument("--width", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--root", type=Path, help="data folder, if not the cache or $MLPCONV_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs/factorize"))
    parser.add_argument("--draw", action="store_true", help="draw only, from the results")
    args = parser.parse_args()
    if not args.draw:
        measure(args)
    draw(json.loads((RESULTS / "factorize.json").read_text("utf-8")))


def measure(args: argparse.Namespace) -> None:
    """Write results/factorize.json."""
    import torch

    path = RESULTS / "factorize.json"
    networks = json.loads(path.read_text("utf-8"))["result"]["networks"] if path.is_file() else {}
    about = {"threads": torch.get_num_threads(), "fit": args.fit, "steps": args.steps}
    about["command"] = shlex.join(["python", "benchmarks/factorize.py", *sys.argv[1:]])
    for name in args.models:
        case = open_case(name, args)
        networks[name] = result = {"rows": []} | about | original(name, case, args)
        for budget in args.budgets:
            for by in WAYS:
                result["rows"].append(row(case, budget, by, args.steps))
                print(f"{name} {by} {budget:g}: " + summary(result["rows"][-1]), flush=True)
                path = write_result("factorize", {"networks": networks})
    print(f"written to {path}")


def open_case(name: str, args: argparse.Namespace) -> Case:
    """Load or train a network, fold its norms, and load its images."""
    import numpy as np

    import mlpconv
    from mlpconv.data import Split
    from mlpconv.data.as_trained import open_as_trained
    from mlpconv.models.folding import fold_norm
    from mlpconv.surgery.lowrank.batches import sample_split

    if name == "wide":
        out = args.runs / f"{args.wide}-width-{args.width:g}"
        # A norm after a pool cannot always be folded.
        settings = {"width": args.width, "epochs": args.epochs, "pool_first": False}
        resume = (out / "recipe.json").is_file()
        run = mlpconv.fit(args.wide, "fast", out=out, resume=resume, data_root=args.root, **settings)
        trained = run.classifier
    else:
        trained = mlpconv.load(TRAINED.get(name, name))
    parts = (trained.preprocessing, trained.classes, trained.input_size, trained.info)
    classifier = mlpconv.Classifier(fold_norm(trained.model), *parts)
    splits = open_as_trained(trained.info["data"], args.root, trained).splits
    # The held-out split of the digits is small, so its test split is used as well; other test splits are not.
    names = ["val", "test"] if trained.info["data"] == "digits" else ["val"]
    images, labels = (
        np.concatenate([getattr(splits[n], array)[: args.held_out] for n in names]) for array in ("images", "labels")
    )
    unseen = Split(images, labels)
    return Case(
        classifier,
        list(sample_split(splits["train"], args.fit, classifier.preprocessing)),
        list(sample_split(unseen, HELD_OUT, classifier.preprocessing)),
        unseen,
    )


def original(name: str, case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Return the cost and error of the original network."""
    info = case.classifier.info
    about = {"data": info["data"], "width": args.width if name == "wide" else 1, "held_out": len(case.unseen)}
    return about | cost(case.classifier) | error(case, case.classifier)


def cost(classifier: Any) -> dict[str, int]:
    """Return the parameters, and the multiply-adds for one image."""
    from mlpconv.analysis import profile

    totals = profile(classifier.model, classifier.input_size).totals
    return {"parameters": totals.params, "macs": totals.macs}


def error(case: Case, classifier: Any) -> dict[str, Any]:
    """Return the error on the unseen images."""
    from mlpconv.evaluation import evaluate

    evaluation = evaluate(classifier, case.unseen)
    return {"error": evaluation.error, "error_interval": list(evaluation.error_interval)}


def row(case: Case, budget: float, by: str, steps: int) -> dict[str, Any]:
    """Return the measurements at one budget, by weights or by activations."""
    from mlpconv import surgery
    from mlpconv.surgery.lowrank.batches import as_batches
    from mlpconv.surgery.lowrank.distill import distill

    began = time.perf_counter()
    result = surgery.factorize(
        case.classifier.model, case.calibration, budget, by=by, held_out=case.held_out, curve=False
    )
    seconds = time.perf_counter() - began
    factorized = like(case.classifier, result.model)
    measured = {"by": by, "budget": budget, "seconds": seconds} | cost(factorized) | error(case, factorized)
    measured["lost"] = result.report.details["error"]["after"]["output"]
    measured["speed"] = speeds(case, factorized)
    network = copy.deepcopy(result.model)
    began = time.perf_counter()
    distill(network, case.classifier.model, as_batches(case.calibration), steps)
    measured["tuned"] = {"seconds": time.perf_counter() - began} | error(case, like(case.classifier, network))
    return measured


def like(classifier: Any, network: Any) -> Any:
    """Return the classifier with another network."""
    import mlpconv

    parts = (classifier.preprocessing, classifier.classes, classifier.input_size)
    return mlpconv.Classifier(copy.deepcopy(network), *parts)


def speeds(case: Case, factorized: Any) -> dict[str, Any]:
    """Return throughput (images/s) and latency (ms) before and after, measured alternately."""
    pair = {"before": case.classifier, "after": factorized}
    results: dict[str, Any] = {}
    for measure, count in (("images_per_second", BATCH), ("ms", 1)):
        images = case.unseen.images[:count]
        times: dict[str, list[float]] = {name: [] for name in pair}
        for turn in range(ROUNDS + 1):
            for name, classifier in pair.items():
                began = time.perf_counter()
                classifier.predict(images)
                if turn:  # the first round prepares the engine
                    times[name].append(time.perf_counter() - began)
        medians = {name: median(seconds) for name, seconds in times.items()}
        results[measure] = {n: count / s if measure == "images_per_second" else 1000 * s for n, s in medians.items()}
        results[measure]["times"] = median([b / a for b, a in zip(times["before"], times["after"], strict=True)])
    return results


def summary(row: dict[str, Any]) -> str:
    """Describe a row in one line."""
    times = row["speed"]["images_per_second"]["times"]
    tuned = row["tuned"]["error"]
    return f"{row['macs']:,} multiply-adds, error {row['error']:.2%}, tuned {tuned:.2%}, {times:.2f} times as fast"


def draw(content: dict[str, Any]) -> None:
    """Draw the figure, and write the tables of the page."""
    from mlpconv.plots import save_figure

    networks = content["result"]["networks"]
    save_figure(plot(networks), PICTURE)
    text = "".join(table(name, result) for name, result in networks.items())
    machine = content["machine"]
    text += f"{machine['cpu']}, PyTorch {machine['packages']['torch']}, {content['date']}.\n"
    page, count = re.subn(
        MARKED.format("(?:.*?)"), lambda _: MARKED.format(text), PAGE.read_text("utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{PAGE.name} has {count} sections for the tables; 1 is needed")
    PAGE.write_text(page, "utf-8")
    print(f"drawn to {PICTURE}, written to {PAGE}")


def title(name: str, result: dict[str, Any]) -> str:
    """Return the title of a network."""
    return f"{result['data']}, width {result['width']:g}" if name == "wide" else name


def table(name: str, result: dict[str, Any]) -> str:
    """Return the table of one network, with a row per budget."""
    low, high = (f"{100 * bound:.1f}" for bound in result["error_interval"])
    text = (
        f"**{title(name, result)}**: {result['macs'] / 1e6:.3g} million multiply-adds, error {result['error']:.2%} on "
        f"{result['held_out']:,} unseen images (95% interval {low} to {high}%).\n\n"
        "| multiply-adds kept | by weights | fine-tuned | by activations | fine-tuned | throughput | latency |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for budget in sorted({row["budget"] for row in result["rows"]}, reverse=True):
        ways = {row["by"]: row for row in result["rows"] if row["budget"] == budget}
        if len(ways) < len(WAYS):  # the run was stopped between the two
            continue
        cells = [f"{ways['activations']['macs'] / result['macs']:.0%}"]
        for way in WAYS:
            cells += [f"{ways[way]['error']:.2%}", f"{ways[way]['tuned']['error']:.2%}"]
        cells += [f"× {ways['activations']['speed'][measure]['times']:.2f}" for measure in ("images_per_second", "ms")]
        text += f"| {' | '.join(cells)} |\n"
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
    about = f"Calibrated on {result['fit']:,} training images, fine-tuned for {result['steps']} steps; {threads}"
    return text + f"\n{about}: `{result['command']}`.\n\n"


def plot(networks: dict[str, Any]) -> Any:
    """Plot error against multiply-adds for each network, by weights and by activations, before and after tuning."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from mlpconv.plots.style import ACCENT, BASE, QUIET, new_figure, styled

    @styled
    def drawn() -> Any:
        figure = new_figure(max(6.4, 4.6 * len(networks)), 4.2)
        grid = figure.add_gridspec(1, len(networks))
        for column, (name, result) in enumerate(networks.items()):
            axes = figure.add_subplot(grid[column])
            axes.set_title(title(name, result))
            axes.axhline(100 * result["error"], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="the original")
            for way, colour in (("weights", BASE), ("activations", ACCENT)):
                rows = sorted((row for row in result["rows"] if row["by"] == way), key=lambda row: row["budget"])
                kept = [100 * row["macs"] / result["macs"] for row in rows]
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
            axes.set_xlabel("multiply-adds kept, %")
        figure.axes[0].set_ylabel("error on unseen images, %")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        return figure

    return drawn()


if __name__ == "__main__":
    main()
