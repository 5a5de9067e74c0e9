"""Networks as model zoos build them: captured, counted and rebuilt like those of our own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import latmorph as lm
from oracle import largest_difference, masked_twin, random_kept, randomise
from tools.zoo import import_torchvision

pytestmark = pytest.mark.zoo


@pytest.fixture(scope="module", autouse=True)
def torchvision_beside_a_cpu_torch() -> None:
    import_torchvision()


def torchvision(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module("torchvision.models"), name)(weights=None, **settings)


def timm(name: str) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("timm").create_model(name)


def pytorchcv(name: str) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("pytorchcv.model_provider").get_model(name)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"torchvision {name}": torchvision(name)
        for name in (
            *("resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "vgg16"),
            *("vgg11_bn", "densenet121", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf", "mnasnet0_5"),
            *("squeezenet1_0", "shufflenet_v2_x1_0", "alexnet", "vit_b_16"),
        )
    },
    **{
        f"torchvision {name}": torchvision(name, init_weights=False) for name in ("googlenet", "inception_v3")
    },
    **{
        f"timm {name}": timm(name)
        for name in (
            *("resnet18", "seresnet50", "mobilenetv2_100", "vgg16", "vit_small_patch16_224"),
            *("deit_tiny_patch16_224", "efficientnet_b0", "inception_v4", "resnet26d"),
        )
    },
    **{f"pytorchcv {name}": pytorchcv(name) for name in ("resnet18", "mobilenetv2_w1", "inceptionv3")},
}
LARGE_IMAGES = ("inception",)


@pytest.mark.parametrize("name", NETWORKS)
def test_flops_agree_and_rebuilt_networks_equal_their_masked_twins(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    randomise(model, 0)
    with torch.no_grad():
        for p in model.parameters():  # some heads start at zero, which hides everything before them
            if not p.any():
                p.normal_(0, 0.02)
    size = 299 if any(word in name for word in LARGE_IMAGES) else 224
    x = torch.randn(1, 3, size, size)
    graph = lm.capture(model, (x,))
    # With gradients on, torch's transformer layers run as the operators that are counted and captured.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    assert graph.flops == counter.get_total_flops()
    assert graph.parameters == sum(p.numel() for p in model.parameters())
    assert graph.prunable
    random = np.random.default_rng(0)
    for _ in range(3):
        kept = random_kept(graph, random)
        small = lm.shrink(model, lm.Structure.keep(graph, kept))
        assert largest_difference(masked_twin(model, graph, kept), small, (x,)) <= 1e-5
