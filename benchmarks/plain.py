"""The paper's CIFAR-10 network as its ports write it: nothing but torch.nn, NCHW."""

from __future__ import annotations

from torch import nn

__all__ = ["network"]

CLASSES = 10


def network() -> nn.Sequential:
    """The 966,986 parameters of the paper's CIFAR-10 network, ReLU before pooling as everyone writes it."""
    layers: list[nn.Module] = []
    channels = 3
    blocks = ((5, (192, 160, 96)), (5, (192, 192, 192)), (3, (192, 192, CLASSES)))
    for number, (kernel, widths) in enumerate(blocks):
        if number:
            layers += [nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5)]
        for index, width in enumerate(widths):
            side = kernel if index == 0 else 1
            layers += [nn.Conv2d(channels, width, side, padding=side // 2), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
