"""Fine-tune a network of timm on a folder of images, with the loop that PyTorch users write."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from mlpconv.models.external import import_vision

timm = import_vision("timm")  # also with a torchvision that was compiled for another build of torch
datasets, transforms = import_vision("torchvision.datasets"), import_vision("torchvision.transforms")

__all__ = ["Finetuning", "accuracy", "finetune", "loader"]


@dataclass(frozen=True)
class Finetuning:
    """Settings of the loop: AdamW with a cosine schedule, random resized crops and horizontal flips.

    `weights` is a safetensors file with timm's parameter names; None downloads timm's own. The number of epochs is at
    least `epochs`, and more if these are fewer than `min_steps` steps.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 6
    min_steps: int = 150
    batch: int = 32
    side: int = 160
    smallest_crop: float = 0.5
    precision: str = "fp32"
    name: str = "tf_efficientnet_lite0"
    weights: Path | None = None


def network(settings: Finetuning, num_classes: int) -> nn.Module:
    """Return the pretrained network with a new classifier, channels-last."""
    file = {"pretrained_cfg_overlay": {"file": str(settings.weights)}} if settings.weights else {}
    model = timm.create_model(settings.name, pretrained=True, **file)
    model.reset_classifier(num_classes)
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def loader(folder: Path, settings: Finetuning, *, train: bool, seed: int = 0) -> DataLoader[Any]:
    """Return batches of the images of a folder, augmented and shuffled for training."""
    config = timm.data.resolve_model_data_config(timm.create_model(settings.name))
    normalise = [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
    side, bicubic = settings.side, transforms.InterpolationMode.BICUBIC
    if train:
        scale = (settings.smallest_crop, 1.0)
        crop = transforms.RandomResizedCrop(side, scale=scale, interpolation=bicubic)
        chain = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *normalise])
    else:
        chain = transforms.Compose([transforms.Resize((side, side), interpolation=bicubic), *normalise])
    images = datasets.ImageFolder(str(folder), chain)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(images, settings.batch, shuffle=train, drop_last=train, generator=generator)


@torch.inference_mode()
def accuracy(model: nn.Module, batches: DataLoader[Any]) -> float:
    """Return the fraction of images whose highest logit is that of their class."""
    model.eval()
    correct = total = 0
    for images, labels in batches:
        correct += int((model(images.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).sum())
        total += len(labels)
    return correct / total


def finetune(data: Path, settings: Finetuning, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """Train on data/train; return the network of the last epoch, and its accuracy on data/val and the seconds."""
    clock, cpu = time.perf_counter(), time.process_time()
    torch.manual_seed(seed)
    train, val = (loader(data / name, settings, train=name == "train", seed=seed) for name in ("train", "val"))
    epochs = max(settings.epochs, -(-settings.min_steps // len(train)))
    model = network(settings, len(train.dataset.classes))  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    accuracies: list[float] = []
    for _ in range(epochs):
        model.train()
        for images, labels in train:
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracies.append(accuracy(model, val))
    seconds = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - clock}
    return model, {"accuracy": accuracies[-1], "best": max(accuracies), "epochs": epochs} | seconds
