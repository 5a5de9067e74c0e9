"""The networks of :mod:`tools.torch_pruning`: Torch-Pruning's own list, hard cases, and some of timm."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tools.architectures import Architecture, Inputs, architectures, normal, words
from tools.zoo import import_torchvision

PEERS = """
ssdlite320_mobilenet_v3_large ssd300_vgg16 fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2
fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn fcos_resnet50_fpn
keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2 retinanet_resnet50_fpn_v2 raft_large alexnet
vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14 convnext_tiny convnext_small convnext_base convnext_large
densenet121 densenet169 densenet201 densenet161 efficientnet_b0 efficientnet_b1 efficientnet_b2
efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_s
efficientnet_v2_m efficientnet_v2_l googlenet inception_v3 mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_y_400mf regnet_y_800mf regnet_y_1_6gf
regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf resnet18 resnet34 resnet50 resnet101
resnet152 resnext50_32x4d resnext101_32x8d wide_resnet50_2 wide_resnet101_2 fcn_resnet50 fcn_resnet101
deeplabv3_resnet50 deeplabv3_resnet101 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large
squeezenet1_0 squeezenet1_1 vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn shufflenet_v2_x0_5
shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 swin_t swin_s swin_b
"""
"""The models of Torch-Pruning's own list (examples/torchvision_models of its repository)."""

SIDE = 128
"""Side of torchvision's pictures where a network takes any, in place of 224: a third of the time."""
FIXED = ("vit", "maxvit", "swin")
"""What the names of networks begin with that take one side only, or other operators at others."""

TIMM = """
coat_lite_tiny convnext_atto convnextv2_atto cs3darknet_s cspresnet50 deit_tiny_patch16_224 dla34 dpn68
edgenext_xx_small efficientformer_l1 ese_vovnet19b_dw ghostnet_050 hrnet_w18_small inception_next_atto
levit_128s mambaout_femto maxvit_pico_rw_256 mixer_s16_224 mixnet_s mobilenetv4_conv_small mobilevit_xxs
poolformer_s12 regnetz_b16 repvgg_a0 res2net50_14w_8s resnet50_gn resnest14d selecsls42b sequencer2d_s
skresnet18 vit_tiny_patch16_224
"""


class Shuffled(nn.Module):
    """Grouped convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.second(x).relu().mean((2, 3)))


class Tied(nn.Module):
    """A residual block on words; the head is the embedding's own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.block = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 100, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        return self.head(x + self.block(x))


class Recurrent(nn.Module):
    """An LSTM between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 24)
        self.lstm = nn.LSTM(24, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.inner(x).relu())[0][:, -1])


def _plain() -> nn.Module:
    layers = (nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 30, 3))
    return nn.Sequential(*layers, nn.BatchNorm2d(30), nn.ReLU(), nn.Flatten(), nn.Linear(30 * 36, 10))


def _grouped_transposed() -> nn.Module:
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 32, 2, stride=2, groups=4))
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(32, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    "plain": (_plain, partial(normal, 3, 8, 8)),
    "channel shuffle": (Shuffled, partial(normal, 3, 8, 8)),
    "tied embedding and head": (Tied, words),
    "LSTM": (Recurrent, partial(normal, 6, 8)),
    "grouped transposed convolution": (_grouped_transposed, partial(normal, 3, 8, 8)),
}


def listed(zoos: Iterable[str]) -> list[Architecture]:
    """The architectures of the comparison; inputs are batches of one, as in Torch-Pruning's examples."""
    known = {(a.zoo, a.name): a for a in architectures([z for z in zoos if z != "cases"])}
    names = {"torchvision": [*PEERS.split(), "maxvit_t"], "timm": TIMM.split(), "cases": list(CASES)}
    found = []
    for zoo, name in ((z, name) for z in zoos for name in names[z]):
        if zoo == "cases":
            build, inputs = CASES[name]
        elif (zoo, name) in known:
            build, inputs = known[zoo, name].build, known[zoo, name].inputs
            if zoo == "torchvision" and not name.startswith(FIXED):
                inputs = partial(normal, 3, SIDE, SIDE)
        else:
            build, inputs = partial(_detector, name), partial(_scenes, name)
        found.append(Architecture(zoo, name, partial(_seeded, build), partial(_one, inputs)))
    return found


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def _one(inputs: Callable[[], Inputs]) -> Inputs:
    return tuple(x[:1] for x in inputs())


def _detector(name: str) -> nn.Module:
    import_torchvision()
    models = importlib.import_module("torchvision.models")
    boxes = importlib.import_module("torchvision.ops.boxes")
    if not importlib.import_module("torchvision.extension")._has_ops():
        # torchvision's compiled half, where alone this operator is, does not come with a CPU build of torch.
        boxes._assert_has_ops = lambda: None
        torch.library.impl("torchvision::nms", "CPU", nms)
    settings: dict[str, Any] = {"weights": None}
    if name != "raft_large":
        settings["weights_backbone"] = None
        if "ssd" not in name:  # trainable backbones have batch norms that are not frozen
            settings |= {"trainable_backbone_layers": 6 if "mobilenet" in name else 5}
            settings |= {"min_size": SIDE, "max_size": 2 * SIDE}
        settings["box_score_thresh" if "rcnn" in name else "score_thresh"] = 0.0  # so that there are boxes
    model = models.get_model(name, **settings)
    if name.startswith(("ssd", "fcos", "retinanet")):
        # Of scores that are equal but for rounding any may be first: what is compared is what the head says.
        model.head.register_forward_hook(_keep)
        model.register_forward_hook(_instead)
    return model


def _keep(head: nn.Module, _: object, given: Any) -> None:
    head.given = given


def _instead(model: Any, _: object, __: object) -> Any:
    return model.head.__dict__.pop("given")


def is_detector(name: str) -> bool:
    """Whether an architecture is one of torchvision's detectors."""
    return name.startswith(("ssd", "fcos", "retinanet")) or "rcnn" in name


class Dense(nn.Module):
    """All layers of one of torchvision's detectors, without what decides by values how many boxes there are.

    Pictures are neither scaled nor are boxes chosen, and whole maps of features stand for proposed regions: a
    pass that has a fixed list of operators, in which every layer is called as the detector calls it.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    @staticmethod
    def inputs(detector: Any, pictures: Inputs) -> Inputs:
        """What the detector's layers are given: pictures at the size that it works at."""
        return (detector.transform(list(pictures[0]))[0].tensors,)

    def forward(self, pictures: torch.Tensor) -> Any:
        detector: Any = self.detector
        maps = detector.backbone(pictures)
        if not hasattr(detector, "rpn"):
            return detector.head(list(maps.values()))
        regional, found = detector.roi_heads, [detector.rpn.head(list(maps.values()))]
        for kind in ("box", "mask", "keypoint"):
            pool, head, predictor = (
                getattr(regional, f"{kind}_{part}", None) for part in ("roi_pool", "head", "predictor")
            )
            if head is not None:
                read = [x for name, x in maps.items() if name in pool.featmap_names]
                regions = torch.cat([F.adaptive_avg_pool2d(x, pool.output_size) for x in read])
                found.append(predictor(head(regions)))
        return found


def _scenes(name: str) -> Inputs:
    if name == "raft_large":
        return (*normal(3, SIDE, SIDE), normal(3, SIDE + 2, SIDE)[0][:, :, 2:])
    return (torch.rand(1, 3, SIDE, SIDE + 32, generator=torch.Generator().manual_seed(0)),)


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Indices of the boxes ``(N, 4)`` that no better one overlaps by more, best first, as torchvision's."""
    order = scores.argsort(descending=True)
    corners = boxes.detach()[order].numpy()
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    alive = np.ones(len(corners), dtype=bool)
    for i in range(len(corners)):
        if alive[i]:
            low, high = np.maximum(corners[i, :2], corners[:, :2]), np.minimum(corners[i, 2:], corners[:, 2:])
            shared = (high - low).clip(0).prod(1)
            alive[i + 1 :] &= (shared <= iou_threshold * (areas[i] + areas - shared))[i + 1 :]
    return order[torch.from_numpy(alive)]
