"""The networks of the survey: all torchvision classifiers, and one or a few small ones of each timm family."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mlpconv.inference.open_network import open_network
from mlpconv.models.external import import_vision

__all__ = ["TIMM", "build", "calibrated", "family", "networks", "randomised", "sizes"]

SMALL = (64, 96, 128, 160, 192, 224)
"""Image sizes to try before a network's own size."""
TIMM = """
beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny coatnet_pico_rw_224 convformer_s18
convmixer_768_32 convnext_atto convnextv2_atto crossvit_9_240 cs3darknet_focus_s cspdarknet53 cspresnet50 davit_tiny
deit_tiny_distilled_patch16_224 densenetblur121d dla34 dla60_res2net dpn48b eca_nfnet_l0 ecaresnet26t edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim
eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b focalnet_tiny_srf gcresnet33ts gcvit_xxtiny gernet_s
ghostnet_050 halonet26t hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small inception_next_atto inception_resnet_v2
inception_v4 lambda_resnet26t lcnet_050 legacy_seresnet18 legacy_xception levit_128s levit_conv_128s mambaout_femto
maxvit_pico_rw_256 mixer_s16_224 mixnet_s mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small_050 mobileone_s0
mobilevit_xxs mobilevitv2_050 nextvit_small nf_regnet_b0 nf_resnet26 pit_ti_224 poolformer_s12 pvt_v2_b0 rdnet_tiny
regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d resnet10t
resnet50_gn resnetv2_18 resnetv2_50x1_bit rexnet_100 selecsls42 shvit_s1 skresnet18 spnasnet_100 starnet_s050
swiftformer_xs swinv2_tiny_window8_256 tf_efficientnet_b0 tiny_vit_5m_224 tinynet_e tresnet_m vgg11_bn visformer_tiny
vit_tiny_patch16_224 vovnet39a xception41 xcit_nano_12_p16_224
""".split()


def networks() -> list[str]:
    """Return the names of all networks, as on the command line."""
    models = import_vision("torchvision.models")
    return [f"torchvision:{name}" for name in models.list_models(module=models)] + [f"timm:{name}" for name in TIMM]


def build(name: str, largest: float = math.inf) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a network in eval mode with random weights and norms, and its default input shape (C, H, W).

    A network with more than `largest` parameters stays uninitialised.
    """
    with warnings.catch_warnings(), _Unfilled():
        warnings.simplefilter("ignore")
        model, shape = open_network(name)
    if sum(parameter.numel() for parameter in model.parameters()) <= largest:
        randomised(model)
    return model.eval(), shape


def family(model: nn.Module) -> str:
    """Return the library and the module that define the network's class."""
    parts = type(model).__module__.split(".")
    return f"{parts[0]} {parts[-1]}"


def sizes(shape: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    """Yield the input shapes to try, from small to the network's own."""
    for side in sorted({*(side for side in SMALL if side < shape[1]), shape[1]}):
        yield (shape[0], side, side)


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Initialise in place: variance-preserving weights, random biases, random norm weights and statistics.

    One in eight norm weights is negative.
    """
    torch.manual_seed(seed)
    for module in model.modules():
        tensors: Mapping[str, Tensor | None] = {**module._parameters, **module._buffers}
        for name, tensor in tensors.items():
            if tensor is None or not tensor.is_floating_point() or (name in module._buffers and "running" not in name):
                continue
            if name == "running_var" or (name == "weight" and tensor.dim() == 1):
                tensor.uniform_(0.5, 1.5)
                if name == "weight":
                    tensor.mul_(torch.where(torch.rand(tensor.shape) < 1 / 8, -1.0, 1.0))
            elif tensor.dim() > 1:
                tensor.normal_().mul_((1.5 / max(1, tensor[0].numel())) ** 0.5)
            else:
                tensor.normal_().mul_(0.3)
    return model


@torch.no_grad()
def calibrated(model: nn.Module, images: Tensor, seed: int = 2) -> nn.Module:
    """Set batch norm statistics in place to those of these images, each perturbed by up to a half.

    With unrelated statistics, activations grow from layer to layer until rounding alone changes the output.
    """
    source = torch.Generator().manual_seed(seed)

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(norm.running_var, Tensor) and isinstance(norm.running_mean, Tensor):
            axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
            variance, mean = torch.var_mean(inputs[0], axes, correction=0)
            drawn = torch.rand((2, len(mean)), generator=source)
            norm.running_mean.copy_(mean + (drawn[0] - 0.5) * variance.sqrt())
            norm.running_var.copy_(variance * (0.5 + drawn[1]))

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return model


class _Unfilled(TorchFunctionMode):
    """Skip the library's initialisation, which takes minutes for large networks and is overwritten."""

    RANDOM = ("normal_", "uniform_", "trunc_normal_", "erfinv_")

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in self.RANDOM:
            return (args[0] if args else options["tensor"]).detach().zero_()  # rejection sampling must terminate
        return func(*args, **options)
