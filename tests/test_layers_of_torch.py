"""Every layer that ``torch.nn`` has for inference is captured, and each of its operators is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import latmorph as lm

SERIES, IMAGE, VIDEO = torch.rand(2, 4, 9), torch.rand(2, 4, 8, 9), torch.rand(2, 4, 6, 8, 9)
ROWS = torch.rand(3, 4)
IDS = torch.arange(6).reshape(2, 3)

LAYERS: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    **{
        name: (getattr(nn, name)(), (SERIES,))
        for name in (
            *(
                "ELU",
                "Hardshrink",
                "Hardsigmoid",
                "Hardtanh",
                "Hardswish",
                "LeakyReLU",
                "LogSigmoid",
                "PReLU",
            ),
            *("ReLU", "ReLU6", "RReLU", "SELU", "CELU", "GELU", "Sigmoid", "SiLU", "Mish", "Softplus"),
            *("Softshrink", "Softsign", "Tanh", "Tanhshrink", "Identity", "Flatten", "Dropout", "Dropout1d"),
            *("AlphaDropout", "FeatureAlphaDropout"),
        )
    },
    "GELU tanh": (nn.GELU("tanh"), (SERIES,)),
    "Threshold": (nn.Threshold(0.1, 1.0), (SERIES,)),
    "GLU": (nn.GLU(1), (SERIES,)),
    "Dropout2d": (nn.Dropout2d(), (IMAGE,)),
    "Dropout3d": (nn.Dropout3d(), (VIDEO,)),
    **{name: (getattr(nn, name)(1), (SERIES,)) for name in ("Softmin", "Softmax", "LogSoftmax") if name},
    "Softmax2d": (nn.Softmax2d(), (IMAGE,)),
    "Unflatten": (nn.Unflatten(1, (2, 2)), (SERIES,)),
    **{
        f"{kind}{rank}d": (getattr(nn, f"{kind}{rank}d")(4, 6, 3, dilation=2), (x,))
        for kind in ("Conv", "ConvTranspose")
        for rank, x in ((1, SERIES), (2, IMAGE), (3, VIDEO))
    },
    "Conv2d circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (IMAGE,)),
    "Conv2d reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (IMAGE,)),
    **{
        f"{kind}{rank}d": (getattr(nn, f"{kind}{rank}d")(2), (x,))
        for kind in ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
        for rank, x in ((1, SERIES), (2, IMAGE), (3, VIDEO))
    },
    **{
        f"LPPool{rank}d": (getattr(nn, f"LPPool{rank}d")(2, 2), (x,))
        for rank, x in ((1, SERIES), (2, IMAGE), (3, VIDEO))
    },
    **{
        f"{kind}Pad{rank}d": (
            getattr(nn, f"{kind}Pad{rank}d")(1, *([0.5] if kind == "Constant" else [])),
            (x,),
        )
        for kind in ("Constant", "Zero", "Reflection", "Replication", "Circular")
        for rank, x in ((1, SERIES), (2, IMAGE), (3, VIDEO))
    },
    **{
        f"{kind}{rank}d": (getattr(nn, f"{kind}{rank}d")(4), (x,))
        for kind in ("BatchNorm", "InstanceNorm")
        for rank, x in ((1, SERIES), (2, IMAGE), (3, VIDEO))
    },
    "GroupNorm": (nn.GroupNorm(2, 4), (IMAGE,)),
    "LayerNorm": (nn.LayerNorm(9), (SERIES,)),
    "RMSNorm": (nn.RMSNorm(9), (SERIES,)),
    "LocalResponseNorm": (nn.LocalResponseNorm(3), (IMAGE,)),
    **{name: (getattr(nn, name)(9, 5, 2, bidirectional=True), (SERIES,)) for name in ("RNN", "LSTM", "GRU")},
    "LSTM projected": (nn.LSTM(9, 5, proj_size=3), (SERIES,)),
    **{name: (getattr(nn, name)(4, 5), (ROWS,)) for name in ("RNNCell", "LSTMCell", "GRUCell")},
    "Linear": (nn.Linear(9, 3), (SERIES,)),
    "Bilinear": (nn.Bilinear(4, 4, 3), (ROWS, ROWS)),
    "MultiheadAttention": (nn.MultiheadAttention(9, 3, batch_first=True), (SERIES, SERIES, SERIES)),
    "TransformerEncoderLayer": (nn.TransformerEncoderLayer(9, 3, 12), (SERIES,)),
    "TransformerEncoder": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 2, enable_nested_tensor=False),
        (torch.rand(2, 3, 8),),
    ),
    "TransformerDecoderLayer": (nn.TransformerDecoderLayer(9, 3, 12), (SERIES, SERIES)),
    "Transformer": (nn.Transformer(8, 2, 1, 1, 12), (torch.rand(2, 3, 8), torch.rand(2, 3, 8))),
    "Embedding": (nn.Embedding(9, 4), (IDS,)),
    "EmbeddingBag": (nn.EmbeddingBag(9, 4), (IDS,)),
    "CosineSimilarity": (nn.CosineSimilarity(), (ROWS, ROWS)),
    "PairwiseDistance": (nn.PairwiseDistance(), (ROWS, ROWS)),
    "PixelShuffle": (nn.PixelShuffle(2), (IMAGE,)),
    "PixelUnshuffle": (nn.PixelUnshuffle(2), (torch.rand(1, 2, 4, 4),)),
    "ChannelShuffle": (nn.ChannelShuffle(2), (IMAGE,)),
    **{
        f"Upsample {mode}": (nn.Upsample(scale_factor=2, mode=mode), (x,))
        for mode, x in (
            *(("nearest", IMAGE), ("linear", SERIES), ("bilinear", IMAGE), ("bicubic", IMAGE)),
            ("trilinear", VIDEO),
        )
    },
    "Unfold": (nn.Unfold(2), (IMAGE,)),
    "Fold": (nn.Fold((4, 4), 2), (torch.rand(2, 8, 9),)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_s_operators_are_known(name: str) -> None:
    layer, inputs = LAYERS[name]
    graph = lm.capture(layer.eval(), inputs)
    assert graph.unknown == ()
