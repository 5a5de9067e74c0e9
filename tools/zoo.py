"""Networks of the model zoos, as designed, with random weights: what a profile has to be right about.

Zoos are optional. Without any of them the six networks of :mod:`tools.networks` stand in. None of these
networks is used in fitting a profile.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from tools.networks import NETWORKS

Inputs = tuple[torch.Tensor, ...]

_KEPT_ALIVE: list[Any] = []


def import_torchvision() -> None:
    """Import torchvision; beside a CPU build of torch, define the operators of its missing compiled half."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT_ALIVE.append(library)
        importlib.import_module("torchvision")


@dataclass(frozen=True)
class ZooNetwork:
    """A network of a zoo: how to make it, with weights that are the same every time, and its inputs."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]

    def make(self) -> nn.Module:
        """The network in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().eval()


def picture(shape: tuple[int, ...]) -> torch.Tensor:
    """Pictures ``(N, C, H, W)`` of noise with the spectrum of a photograph, normalised as networks get them.

    Amplitude falls with frequency as ``1 / f`` (Field 1987, "Relations between the statistics of natural
    images and the response properties of cortical cells"). How long max-pooling takes depends on it: over
    white noise longer, over noise between 0 and 1 less long.
    """
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.fft.fftfreq(shape[2])[:, None], torch.fft.rfftfreq(shape[3])[None]
    frequency = torch.hypot(rows, columns).clamp(min=1 / max(shape[2:]))
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=shape[2:])
    smooth = smooth - smooth.mean((2, 3), keepdim=True)
    return smooth / smooth.std((2, 3), keepdim=True)


def images(size: int, batch: int) -> Inputs:
    """``batch`` square pictures."""
    return (picture((batch, 3, size, size)),)


def tokens(length: int, batch: int) -> Inputs:
    """``batch`` texts of random words."""
    return (torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(0)),)


class FirstOutput(nn.Module):
    """A language model that takes token numbers and gives one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids, return_dict=False)[0]


def _torchvision(name: str, **settings: Any) -> nn.Module:
    import_torchvision()
    return getattr(importlib.import_module("torchvision.models"), name)(weights=None, **settings)


def _timm(name: str) -> nn.Module:
    import_torchvision()
    return importlib.import_module("timm").create_model(name)


def _pytorchcv(name: str) -> nn.Module:
    import_torchvision()
    return importlib.import_module("pytorchcv.model_provider").get_model(name)


def _transformers(kind: str, **settings: Any) -> nn.Module:
    import_torchvision()
    library = importlib.import_module("transformers")
    config = getattr(library, f"{kind}Config")(**settings, use_cache=False)
    return FirstOutput(getattr(library, f"{kind}Model")(config))


TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "regnet_y_400mf", "regnet_x_1_6gf", "vgg11"),
    *("vgg11_bn", "alexnet", "densenet121", "googlenet", "inception_v3", "mobilenet_v2"),
    *("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "mnasnet1_0"),
    *("shufflenet_v2_x1_0", "squeezenet1_1", "convnext_tiny", "swin_t", "vit_b_32"),
)
TIMM = (
    *("mobilenetv1_100", "mobilenetv4_conv_small", "efficientnet_lite0", "repvgg_a0", "ghostnet_100"),
    *("hrnet_w18_small", "dla34", "vit_tiny_patch16_224", "deit_small_patch16_224", "mixer_s16_224"),
    *("resmlp_12_224", "poolformer_s12", "seresnet50", "resnet26d", "cspresnet50", "ese_vovnet19b_dw"),
    *("fbnetc_100", "mixnet_s", "rexnet_100", "lcnet_100", "selecsls42b", "mobilevit_s", "levit_128s"),
    *("tf_efficientnetv2_b0",),
)
PYTORCHCV = ("mobilenet_w1", "preresnet18", "seresnet18", "bninception", "sqnxt23_w1", "peleenet")
TEXT: dict[str, tuple[str, int, dict[str, Any]]] = {
    "BERT mini": (
        "Bert",
        128,
        {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "vocab_size": 30522,
        },
    ),
    "DistilBERT, 3 layers": ("DistilBert", 96, {"n_layers": 3, "vocab_size": 30522}),
    "GPT-2, 4 layers": (
        "GPT2",
        64,
        {"n_layer": 4, "n_embd": 512, "n_head": 8, "vocab_size": 20000},
    ),
}
"""Configuration's class, tokens and settings."""

SIZES = {"inception_v3": 299, "mobilevit_s": 256}
"""Sides of the pictures that are not 224."""


def zoo() -> dict[str, ZooNetwork]:
    """Every network whose zoo is installed; without any zoo, the six written out here."""
    installed = {name for name in ("torchvision", "timm", "pytorchcv", "transformers") if find_spec(name)}
    found: dict[str, ZooNetwork] = {}

    def add(name: str, build: Callable[[], nn.Module], inputs: Callable[[int], Inputs]) -> None:
        found[name] = ZooNetwork(name, build, inputs)

    if "torchvision" in installed:
        for name in TORCHVISION:
            aux = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            add(
                f"torchvision {name}",
                partial(_torchvision, name, **aux),
                partial(images, SIZES.get(name, 224)),
            )
    for library, names, make in (("timm", TIMM, _timm), ("pytorchcv", PYTORCHCV, _pytorchcv)):
        if library in installed:
            for name in names:
                add(f"{library} {name}", partial(make, name), partial(images, SIZES.get(name, 224)))
    if "transformers" in installed:
        for name, (kind, length, settings) in TEXT.items():
            add(f"transformers {name}", partial(_transformers, kind, **settings), partial(tokens, length))
    return found or written_out()


def written_out() -> dict[str, ZooNetwork]:
    """The six networks of :mod:`tools.networks`."""
    return {name: ZooNetwork(name, build, partial(images, 224)) for name, build in NETWORKS.items()}
