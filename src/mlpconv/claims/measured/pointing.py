"""Claim 21: category maps show where the class is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlpconv.claims.budget import Images
from mlpconv.claims.schema import Arm, Claim, Comparison
from mlpconv.layers import GlobalAveragePool

__all__ = ["CLAIM", "mosaics", "pointing_accuracy"]

POINTS = {"digits": 5.0, "mnist": 5.0}
BODY = "3x3:16 1x1:16 1x1:16 max 3x3:24 1x1:24 1x1:24 max 3x3:32 1x1:32 1x1:32 "
MOSAICS = 300


def mosaics(images: Images, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (M, C, H, W) of four test images of different classes, and the classes (M, 4) of their quarters."""
    generator = torch.Generator().manual_seed(seed)
    side = images.shape.side // 2
    # Each canvas has one image in a quarter; the sum over the quarters is the image plus three times the background.
    background = images.test.min()
    quarters = images.test.unflatten(2, (2, side)).unflatten(4, (2, side)) - background
    tiles = quarters.sum((2, 4)) + background
    canvas: list[Tensor] = []
    classes: list[Tensor] = []
    while len(canvas) < MOSAICS:
        chosen = torch.randint(len(tiles), (4,), generator=generator)
        labels = images.test_labels[chosen]
        if len(labels.unique()) == len(labels):
            first, second, third, fourth = tiles[chosen]
            canvas.append(torch.cat([torch.cat([first, second], 2), torch.cat([third, fourth], 2)], 1))
            classes.append(labels)
    return torch.stack(canvas), torch.stack(classes)


def pointing_accuracy(maps: Tensor, classes: Tensor) -> float:
    """Return how often (%) the largest value of a class's map (M, K, h, w) lies in the quarter (M, 4) of that class."""
    chosen = maps.gather(1, classes[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
    peak = chosen.flatten(2).argmax(2)
    row, column = peak // maps.shape[3], peak % maps.shape[3]
    quarter = 2 * (2 * row >= maps.shape[2]).long() + (2 * column >= maps.shape[3]).long()
    return 100 * float((quarter == torch.arange(4)).double().mean())


def measure(network: nn.Sequential, images: Images, seed: int) -> dict[str, float]:
    """Return the pointing accuracy of the maps of the network's head and of Grad-CAM."""
    canvas, classes = mosaics(images, seed)
    pooled = isinstance(network[-1], GlobalAveragePool)
    cut = len(network) - (2 if pooled else 1)
    body, head = network[:cut], network[cut:]
    with torch.no_grad():
        features = body(canvas)
        if pooled:
            maps = network[-2](features)
        else:  # each cell's contribution to each logit
            linear = next(module for module in network[-1].modules() if isinstance(module, nn.Linear))
            weight = linear.weight.unflatten(1, features.shape[1:])
            maps = torch.einsum("kchw,nchw->nkhw", weight, features)
    return {"pointing": pointing_accuracy(maps, classes), "grad_cam": grad_cam(body, head, canvas, classes)}


def grad_cam(body: nn.Module, head: nn.Module, canvas: Tensor, classes: Tensor) -> float:
    """Return the pointing accuracy of Grad-CAM (Selvaraju and others, 2017) on the features before the head."""
    features = body(canvas).detach().requires_grad_()
    logits = head(features)
    maps = torch.zeros(len(canvas), logits.shape[1], *features.shape[2:])
    for index in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, index].sum(), features, retain_graph=True)
        maps[:, index] = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu().detach()
    return pointing_accuracy(maps, classes)


CLAIM = Claim(
    number=21,
    name="pointing",
    title="Category maps show where",
    words="With global average pooling, the map of a class shows where in the image the class is, without any label of "
    "a position.",
    source="Lin, Chen and Yan (2014), section 4.6; Zhou and others (2016), class activation maps",
    method="Training images hold one object in a random quarter. Tested on mosaics of four objects of different "
    "classes: how often is the peak of a class's map in the right quarter (25 % by chance)? Category maps against the "
    "contributions of each cell to the logits of a fully connected head, and against Grad-CAM on that network.",
    overturn="Objects that fill the image, or heads that are trained with mosaics.",
    arms={"average pooling": Arm(BODY + "1x1:K gap"), "fully connected": Arm(BODY + "fc:K")},
    comparisons=(
        Comparison("category maps, against contributions to a fully connected head", "average pooling",
                   "fully connected", "higher", POINTS, metric="pointing"),
        Comparison("category maps, against Grad-CAM with a fully connected head", "average pooling",
                   "fully connected", "higher", POINTS, metric="pointing", control_metric="grad_cam"),
    ),
    measure=measure,
    data=("digits", "mnist"),
    canvas=True,
)  # fmt: skip
