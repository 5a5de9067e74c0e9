"""The architectures of the model zoos, hundreds of them, as values: what capture and rebuild must hold for.

Listing is cheap: nothing is built. Of torchvision every classifier, segmenter and video network is here; of
timm and pytorchcv one of every *stem*, a name less what tells size (see :func:`timm_stem` and
:func:`pytorchcv_stem`), the smallest by its name; of transformers a table of small configurations. Weights
are random and the same every time, nothing is downloaded, and batches are of two.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from tools.zoo import import_torchvision

ZOOS = ("torchvision", "timm", "pytorchcv", "transformers")

Inputs = tuple[torch.Tensor, ...]
Give = Callable[[], Inputs]

BATCH = 2


@dataclass(frozen=True)
class Architecture:
    """A network of a zoo: ``build`` makes it in eval mode, ``inputs`` the positional arguments of forward.

    Both give the same every time. ``build`` raises what the zoo raises.
    """

    zoo: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Give


def architectures(zoos: Iterable[str] = ZOOS) -> list[Architecture]:
    """The architectures of those of ``zoos`` that are installed, in the same order every time."""
    listed = {
        "torchvision": _torchvision,
        "timm": _timm,
        "pytorchcv": _pytorchcv,
        "transformers": _transformers,
    }
    return [
        Architecture(zoo, name, partial(_seeded, build), inputs)
        for zoo in zoos
        if find_spec(zoo)
        for name, build, inputs in listed[zoo]()
    ]


Listed = tuple[str, Callable[[], nn.Module], Give]
Settings = dict[str, Any]


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def normal(*shape: int) -> Inputs:
    """One tensor ``(BATCH, *shape)`` of normal noise."""
    return (torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0)),)


def words(length: int = 16, vocabulary: int = 100) -> Inputs:
    """``BATCH`` texts of ``length`` token numbers, none of them one of the first three, which often pad."""
    return (torch.randint(3, vocabulary, (BATCH, length), generator=torch.Generator().manual_seed(0)),)


def _smallest(names: Iterable[str], stem: Callable[[str], str], size: Callable[[str], Any]) -> list[str]:
    """Of every stem the name that is smallest by ``size``, sorted."""
    found: dict[str, str] = {}
    for name in names:
        key = stem(name)
        found[key] = min(found.get(key, name), name, key=lambda n: (size(n), n))
    return sorted(found.values())


# torchvision.

SIDES = {"inception_v3": 299}
"""Sides of the pictures that are not 224."""

CLIPS = {"s3d": (16, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}
"""Frames and side of the clips that are not 8 of 112."""


def _torchvision() -> list[Listed]:
    import_torchvision()
    models = importlib.import_module("torchvision.models")

    def built(name: str) -> Callable[[], nn.Module]:
        # The zoo's own weights of these two take a minute to draw.
        settings: Settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name in segmenters:
            settings = {"weights_backbone": None}
        return partial(models.get_model, name, weights=None, **settings)

    segmenters = models.list_models(module=models.segmentation)
    pictures = [(n, (3, SIDES.get(n, 224), SIDES.get(n, 224))) for n in models.list_models(module=models)]
    pictures += [(n, (3, 224, 224)) for n in segmenters]
    clips = [(n, CLIPS.get(n, (8, 112))) for n in models.list_models(module=models.video)]
    shapes = pictures + [(n, (3, frames, side, side)) for n, (frames, side) in clips]
    return [(name, built(name), partial(normal, *shape)) for name, shape in shapes]


# timm.

SIZES = (
    *(
        "zepto",
        "atto",
        "femto",
        "kobe",
        "pico",
        "nano",
        "dpwee",
        "xxs",
        "xx",
        "xxtiny",
        "xtiny",
        "ti",
        "t",
        "et",
    ),
    *(
        "xs",
        "xsmall",
        "pwee",
        "dwee",
        "wee",
        "tiny",
        "mini",
        "es",
        "dlittle",
        "little",
        "s",
        "small",
        "em",
        "m",
    ),
    *("medium", "mediumd", "betwixt", "el", "b", "base", "plus", "l", "large", "x", "xl", "xlarge", "xxl"),
    *("xxlarge", "h", "huge", "g", "giant", "giantopt", "gigantic", "enormous"),
)
"""Words of timm's names that tell size, from small to large."""

DEEP = 50
"""Residual networks of so many layers, and deeper ones, have bottleneck blocks."""

TIMM_DROPPED = {
    "eva_giant_patch14_224": "a billion parameters",
    "eva_giant_patch14_clip_224": "a billion parameters",
    "efficientnet_l2": "480 million parameters, and no other blocks than efficientnet_b0",
    "tf_efficientnet_l2": "480 million parameters, and no other blocks than tf_efficientnet_b0",
    "deepseek_vit_412m_align": "485 million parameters, and no other blocks than deepseek_vit_412m",
    "deepseek_vit_412m_enc": "485 million parameters, and no other blocks than deepseek_vit_412m",
    "eva_large_patch14_196": "304 million parameters, and no other blocks than other vision transformers",
    "naflexvit_huge_patch16_radio_v4": "651 million parameters, and no other blocks than radio_v3",
    "vit_huge_patch16_radio_v4": "632 million parameters, and no other blocks than radio_v3",
    "vit_intern300m_patch14_448": "304 million parameters at 448 pixels",
    "vit_pe_lang_large_patch14_448": "291 million parameters at 448 pixels",
    "vitamin_large2_224": "333 million parameters, and no other blocks than vitamin_small_224",
}
"""Models that :func:`timm_stem` and :func:`timm_size` choose and that are not here, and why."""


def timm_stem(file: str, name: str) -> str:
    """What is left of a name without what tells size: words, pictures' sides, numbers except generations.

    ``file`` is the one of timm's that the model is in: ``convnextv2_nano`` becomes ``convnext/convnextv2``,
    and ``vit_small_patch16_dinov3_qkvb`` becomes ``eva/vit_patch#_dinov3_qkvb``.
    """
    side = str(_timm_config(name).input_size[-1])
    name = re.sub(
        r"(resnet[a-z]*(?:v2_)?|dla)(\d+)", lambda m: m[1] + "deep" * (int(m[2]) >= DEEP) + "#", name
    )
    parts = []
    for part in name.split("_"):
        if part not in SIZES and part != side and not re.fullmatch(r"(so)?\d+m\d?|\d+b", part):
            parts.append(re.sub(r"^(xxs|xs|ti|s|m|l)\d+$|(?<!v)\d+", "#", part))
    return f"{file}/{'_'.join(parts)}"


def timm_size(name: str) -> tuple[int, int, list[int]]:
    """What orders names of a stem: its smallest size word, pixels, and its numbers, patches reversed."""
    bare = (re.sub(r"\d+$", "", part) for part in name.split("_"))
    rank = min((SIZES.index(word) for word in bare if word in SIZES), default=len(SIZES))
    numbers = [-int(n) if patch else int(n) for patch, n in re.findall(r"(_p|patch)?(\d+)", name)]
    return rank, _timm_shape(name)[1], numbers


def _timm_config(name: str) -> Any:
    return importlib.import_module("timm").get_pretrained_cfg(name)


def _timm_shape(name: str) -> tuple[int, int, int]:
    """Channels, height and width of a model's pictures: the least it takes where it says so, or 224."""
    config = _timm_config(name)
    channels, height, width = config.input_size
    if config.fixed_input_size:
        return channels, height, width
    least: tuple[int, int, int] = config.min_input_size or (channels, min(height, 224), min(width, 224))
    return least


def _timm() -> list[Listed]:
    import_torchvision()
    library = importlib.import_module("timm")
    files = {name: file for file in library.list_modules() for name in library.list_models(module=file)}
    return [
        (name, partial(library.create_model, name), partial(normal, *_timm_shape(name)))
        for name in _smallest(files, lambda n: timm_stem(files[n], n), timm_size)
        if name not in TIMM_DROPPED
    ]


# pytorchcv.

PYTORCHCV_DROPPED = {
    **dict.fromkeys(
        ("jasper", "jasperdr", "quartznet", "nvpattexp", "visemenet", "voca"), "takes no pictures"
    ),
    **dict.fromkeys(("propainter", "propainter_ip", "propainter_rfc", "raft"), "takes several pictures"),
    "ntsnet_cub": "chooses parts of a picture of 448 pixels by their values, in numpy",
    "superpointnet": "chooses points of one grey picture by their values",
}
"""Files of pytorchcv whose networks are not here, and why."""

DATASETS = r"_(cifar100?|svhn|cub|voc|coco|ade20k|cityscapes|celebamaskhq|widerface|cmupan)(?=_|$)"
WIDTH = r"_w(\d*)(?:d(\d+))?(?=_|$)"
"""A factor of all widths: ``_w1``, ``_wd4`` for a fourth, ``_w3d2`` for three halves."""


def pytorchcv_stem(file: str, name: str) -> str:
    """What is left of a name without dataset, factor of widths, size and numbers; ``file`` as in timm's."""
    bare = re.sub(r"_(s|m|l|xl|small|medium|large)(?=_|$)", "", re.sub(f"{DATASETS}|{WIDTH}", "", name))
    return f"{file}/{re.sub(r'(?<!v)[0-9]+', '#', bare)}"


def pytorchcv_size(name: str) -> tuple[float, int, list[int]]:
    """What orders names of a stem: the factor of widths, the size word, and the numbers."""
    found = re.search(WIDTH, name)
    factor = int(found[1] or 1) / int(found[2] or 1) if found else 1.0
    bare = re.sub(f"{DATASETS}|{WIDTH}", "", name)
    rank = min((SIZES.index(word) for word in bare.split("_") if word in SIZES), default=len(SIZES))
    return factor, rank, [int(n) for n in re.findall(r"\d+", bare)]


def _pytorchcv() -> list[Listed]:
    import_torchvision()
    library = importlib.import_module("pytorchcv.model_provider")
    getters = library._models
    files = {name: getter.__module__.rpartition(".")[2] for name, getter in getters.items()}
    kept = [
        n for n in files if files[n] not in PYTORCHCV_DROPPED and n.removesuffix("_cub") not in {*files} - {n}
    ]
    listed: list[Listed] = []
    for name in _smallest(kept, lambda n: pytorchcv_stem(files[n], n), pytorchcv_size):
        channels, sides = _pytorchcv_shape(getters[name].__module__)
        divisor = 4 if max(sides) >= 1024 else 2 if max(sides) > 400 else 1
        settings: Settings = {}
        if divisor > 1:
            sides = 32 * round(sides[0] / divisor / 32), 32 * round(sides[1] / divisor / 32)
            settings = {"in_size": sides}
        listed.append((name, partial(library.get_model, name, **settings), partial(normal, channels, *sides)))
    return listed


@cache
def _pytorchcv_shape(module: str) -> tuple[int, tuple[int, int]]:
    """Channels, and height and width, of the pictures that the networks of a module are made for."""
    for made in vars(importlib.import_module(module)).values():
        if inspect.isclass(made) and issubclass(made, nn.Module):
            known = inspect.signature(made).parameters
            if "in_size" in known and isinstance(known["in_size"].default, tuple):
                return known["in_channels"].default, known["in_size"].default
    return 3, (224, 224)


# transformers.


class Named(nn.Module):
    """A model whose arguments have to be given by name, with positional ones; it gives a tuple of tensors."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *values: torch.Tensor) -> Any:
        """What the model gives, without caches."""
        return self.model(**dict(zip(self.names, values, strict=True)), return_dict=False)


SMALL: Settings = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
TEXT = SMALL | {"vocab_size": 100}
TOKENS = {f"{kind}_token_id": at for at, kind in enumerate(("pad", "bos", "eos"))}
CAUSAL = TEXT | TOKENS | {"num_key_value_heads": 2}
HEADED = CAUSAL | {"head_dim": 16}
GPT: Settings = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 100}
BLOOM: Settings = {"n_layer": 2, "n_head": 4, "hidden_size": 64, "vocab_size": 100}
SEEN = SMALL | {"image_size": 64}
STAGES: Settings = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
WINDOWS: Settings = {
    "image_size": 64,
    "embed_dim": 32,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
PYRAMID: Settings = {"hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 2, 4]}
BOTH: Settings = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
T5: Settings = {
    "d_model": 64,
    "d_kv": 16,
    "num_layers": 2,
    "num_heads": 4,
    "d_ff": 128,
    "vocab_size": 100,
    "decoder_start_token_id": 0,
}
HEARD = SMALL | {
    "vocab_size": 32,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
PAIR: Settings = {"text_config": TEXT | TOKENS, "vision_config": SEEN | {"patch_size": 16}}
CLIPS_SEEN = SEEN | {"num_frames": 4}

PICTURE, SOUND, CLIP = partial(normal, 3, 64, 64), partial(normal, 4000), partial(normal, 4, 3, 64, 64)


def _pair(first: Give, second: Give) -> Inputs:
    return first() + second()


TRANSFORMERS: dict[str, tuple[Settings, Give] | tuple[Settings, Give, tuple[str, ...]]] = {
    # Texts, read in both directions.
    **dict.fromkeys(
        (
            *("BertForMaskedLM", "RobertaForMaskedLM", "AlbertForMaskedLM", "ElectraForMaskedLM"),
            *("ElectraForPreTraining", "MPNetForMaskedLM", "RoFormerForMaskedLM", "ConvBertForMaskedLM"),
            *("CamembertForMaskedLM", "XLMRobertaForMaskedLM", "MegatronBertForMaskedLM", "ErnieForMaskedLM"),
            *("RobertaPreLayerNormForMaskedLM", "RemBertForMaskedLM", "NystromformerForMaskedLM"),
            *("SqueezeBertForMaskedLM", "FNetForMaskedLM", "BertForSequenceClassification"),
            *(
                "BertForTokenClassification",
                "BertForQuestionAnswering",
                "LayoutLMForMaskedLM",
                "YosoForMaskedLM",
            ),
            *("BigBirdForMaskedLM",),
        ),
        (TEXT | {"embedding_size": 64}, words),
    ),
    "MobileBertForMaskedLM": (TEXT | {"embedding_size": 32, "intra_bottleneck_size": 32}, words),
    "EsmForMaskedLM": (TEXT | {"pad_token_id": 1, "mask_token_id": 2}, words),
    "IBertForMaskedLM": (TEXT, words),
    "DistilBertForMaskedLM": (
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 100},
        words,
    ),
    **dict.fromkeys(
        ("DebertaForMaskedLM", "DebertaV2ForMaskedLM"),
        (TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, words),
    ),
    "XLNetLMHeadModel": (
        {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "vocab_size": 100},
        words,
    ),
    "XLMWithLMHeadModel": ({"emb_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 100}, words),
    "FunnelForMaskedLM": (
        {"block_sizes": [1, 1], "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128, "vocab_size": 100},
        words,
    ),
    "LongformerForMaskedLM": (TEXT | TOKENS | {"attention_window": 8}, words),
    "ModernBertForMaskedLM": (TEXT | TOKENS | {"cls_token_id": 1, "sep_token_id": 2}, words),
    "EuroBertForMaskedLM": (CAUSAL, words),
    "CanineModel": (TEXT | {"num_hash_buckets": 64}, words),
    # Texts, written word by word.
    "GPT2LMHeadModel": (GPT, words),
    "OpenAIGPTLMHeadModel": (GPT, words),
    "GPTBigCodeForCausalLM": (GPT, words),
    "GPTJForCausalLM": (GPT | {"rotary_dim": 8}, words),
    "CodeGenForCausalLM": (GPT | {"rotary_dim": 8}, words),
    "GPTNeoForCausalLM": (
        {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 8},
        words,
    ),
    "GPTNeoXForCausalLM": (TEXT, words),
    "BloomForCausalLM": (BLOOM, words),
    "MptForCausalLM": ({"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 100}, words),
    "FalconForCausalLM": (
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100},
        words,
    ),
    "OPTForCausalLM": (TEXT | {"ffn_dim": 128, "word_embed_proj_dim": 32}, words),
    "XGLMForCausalLM": (
        {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128, "vocab_size": 100},
        words,
    ),
    "BioGptForCausalLM": (TEXT, words),
    **{
        f"{name}ForCausalLM": (CAUSAL, words)
        for name in (
            *("Llama", "Mistral", "Qwen2", "Phi", "Phi3", "StableLm", "Olmo", "Olmo2", "Starcoder2"),
            *("Granite", "Cohere", "Cohere2", "SmolLM3", "Persimmon", "Nemotron", "DiffLlama", "Arcee"),
            *("Exaone4", "Apertus", "SeedOss", "BitNet", "Lfm2"),
        )
    },
    **{
        f"{name}ForCausalLM": (HEADED, words)
        for name in (
            "Gemma",
            "Gemma2",
            "Gemma3",
            "Ministral",
            "Qwen3",
            "Glm",
            "Glm4",
            "Helium",
            "Ernie4_5",
            "HunYuanDenseV1",
        )
    },
    "MixtralForCausalLM": (CAUSAL | {"num_local_experts": 2}, words),
    "OlmoeForCausalLM": (CAUSAL | {"num_experts": 4, "num_experts_per_tok": 2}, words),
    **dict.fromkeys(
        ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
        (
            HEADED
            | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
            | {"shared_expert_intermediate_size": 32},
            words,
        ),
    ),
    "MambaForCausalLM": (TEXT | {"state_size": 4}, words),
    "Mamba2ForCausalLM": (TEXT | {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1}, words),
    "FalconMambaForCausalLM": (TEXT | {"state_size": 4}, words),
    "RwkvForCausalLM": (TEXT | {"attention_hidden_size": 64}, words),
    # Texts to texts, sounds to texts: an encoder and a decoder.
    "T5EncoderModel": (T5, words),
    **dict.fromkeys(
        ("T5ForConditionalGeneration", "MT5ForConditionalGeneration", "UMT5ForConditionalGeneration"),
        (T5, partial(_pair, words, partial(words, 8)), ("input_ids", "decoder_input_ids")),
    ),
    **{
        f"{name}": (
            BOTH | TOKENS | {"vocab_size": 100, "decoder_start_token_id": 1},
            partial(_pair, words, partial(words, 8)),
            ("input_ids", "decoder_input_ids"),
        )
        for name in (
            *("BartForConditionalGeneration", "MBartForConditionalGeneration", "MarianMTModel"),
            *("PegasusForConditionalGeneration", "M2M100ForConditionalGeneration"),
            *("BlenderbotForConditionalGeneration", "LEDForConditionalGeneration"),
        )
    },
    "WhisperForConditionalGeneration": (
        BOTH | TOKENS | {"vocab_size": 100, "max_source_positions": 100, "decoder_start_token_id": 1},
        partial(_pair, partial(normal, 80, 200), partial(words, 8)),
        ("input_features", "decoder_input_ids"),
    ),
    "Speech2TextForConditionalGeneration": (
        BOTH | TOKENS | {"vocab_size": 100, "conv_channels": 64, "input_feat_per_channel": 40},
        partial(_pair, partial(normal, 64, 40), partial(words, 8)),
        ("input_features", "decoder_input_ids"),
    ),
    # Sounds.
    **dict.fromkeys(
        (
            *("Wav2Vec2ForCTC", "HubertForCTC", "WavLMForCTC", "UniSpeechForCTC", "UniSpeechSatForCTC"),
            *("Data2VecAudioForCTC", "Wav2Vec2ConformerForCTC"),
        ),
        (HEARD, SOUND),
    ),
    "SEWForCTC": (HEARD | {"conv_dim": (32,) * 13}, SOUND),
    "ASTForAudioClassification": (SEEN | {"max_length": 128, "num_mel_bins": 64}, partial(normal, 128, 64)),
    # Pictures.
    **{
        f"{name}ForImageClassification": (SEEN, PICTURE)
        for name in ("ViT", "DeiT", "Beit", "Data2VecVision", "IJepa", "ViTMSN")
    },
    **{
        f"{name}ForImageClassification": (
            SEEN | {"image_size": 56, "patch_size": 14},
            partial(normal, 3, 56, 56),
        )
        for name in ("Dinov2", "Dinov2WithRegisters")
    },
    "DINOv3ViTModel": (SEEN, PICTURE),
    "DINOv3ConvNextModel": (STAGES, PICTURE),
    "ViTMAEModel": (SEEN | {"mask_ratio": 0.0}, PICTURE),
    "YolosForObjectDetection": (SEEN | {"image_size": [64, 64], "num_detection_tokens": 5}, PICTURE),
    "VitDetModel": (SEEN, PICTURE),
    "CLIPVisionModelWithProjection": (SEEN | {"patch_size": 16}, PICTURE),
    "SiglipVisionModel": (SEEN | {"patch_size": 16}, PICTURE),
    **dict.fromkeys(
        ("CLIPModel", "SiglipModel"),
        (PAIR, partial(_pair, words, PICTURE), ("input_ids", "pixel_values")),
    ),
    "SwinForImageClassification": (WINDOWS, PICTURE),
    "Swinv2ForImageClassification": (WINDOWS, PICTURE),
    "DonutSwinModel": (WINDOWS, PICTURE),
    "Swin2SRForImageSuperResolution": (WINDOWS, PICTURE),
    **{f"{name}ForImageClassification": (STAGES, PICTURE) for name in ("ConvNext", "ConvNextV2")},
    "ResNetForImageClassification": (STAGES | {"embedding_size": 16}, PICTURE),
    "RegNetForImageClassification": (STAGES | {"embedding_size": 16, "groups_width": 8}, PICTURE),
    "BitForImageClassification": (STAGES | {"embedding_size": 16, "num_groups": 8}, PICTURE),
    "MobileNetV1ForImageClassification": ({}, PICTURE),
    "MobileNetV2ForImageClassification": ({}, PICTURE),
    "EfficientNetForImageClassification": ({"width_coefficient": 0.5, "hidden_dim": 640}, PICTURE),
    "MobileViTForImageClassification": ({"image_size": 64}, PICTURE),
    "MobileViTV2ForImageClassification": ({"image_size": 64}, PICTURE),
    "SwiftFormerForImageClassification": ({}, PICTURE),
    "HGNetV2ForImageClassification": ({}, PICTURE),
    "TextNetForImageClassification": ({}, PICTURE),
    "PPLCNetForImageClassification": ({}, PICTURE),
    "PvtForImageClassification": (PYRAMID | {"image_size": 64, "depths": [1, 1, 1, 1]}, PICTURE),
    "PvtV2ForImageClassification": (PYRAMID | {"image_size": 64, "depths": [1, 1, 1, 1]}, PICTURE),
    "SegformerForImageClassification": (PYRAMID | {"image_size": 64, "depths": [1, 1, 1, 1]}, PICTURE),
    "PoolFormerForImageClassification": (STAGES, PICTURE),
    "LevitForImageClassification": ({}, partial(normal, 3, 224, 224)),
    "CvtForImageClassification": ({"depth": [1, 2, 3]}, PICTURE),
    "FocalNetForImageClassification": (
        {
            "image_size": 64,
            "embed_dim": 32,
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        PICTURE,
    ),
    "HieraForImageClassification": ({"embed_dim": 32, "depths": [1, 1, 1, 1]}, partial(normal, 3, 224, 224)),
    "ImageGPTForImageClassification": (GPT | {"n_positions": 16}, words),
    # Pictures to maps and boxes.
    "SegformerForSemanticSegmentation": (PYRAMID | {"image_size": 64, "depths": [1, 1, 1, 1]}, PICTURE),
    "GLPNForDepthEstimation": (PYRAMID | {"image_size": 64, "depths": [1, 1, 1, 1]}, PICTURE),
    "MobileNetV2ForSemanticSegmentation": ({}, PICTURE),
    "MobileViTForSemanticSegmentation": ({"image_size": 64}, PICTURE),
    "BeitForSemanticSegmentation": (SEEN | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}, PICTURE),
    "DPTForDepthEstimation": (
        SEEN
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 48, 64],
        }
        | {"fusion_hidden_size": 32},
        PICTURE,
    ),
    "UperNetForSemanticSegmentation": ({"hidden_size": 64}, PICTURE),
    "DepthAnythingForDepthEstimation": ({}, partial(normal, 3, 56, 56)),
    "DetrForObjectDetection": (
        BOTH
        | {"num_queries": 10, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None},
        PICTURE,
    ),
    # Clips and series.
    **{f"{name}ForVideoClassification": (CLIPS_SEEN, CLIP) for name in ("Timesformer", "VideoMAE", "Vivit")},
    "PatchTSTForPrediction": (
        {
            "d_model": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "prediction_length": 4,
        }
        | {"num_input_channels": 2},
        partial(normal, 32, 2),
    ),
    "PatchTSMixerForPrediction": (
        {"d_model": 16, "num_layers": 2, "num_input_channels": 2},
        partial(normal, 32, 2),
    ),
}
"""By a model's class: what its configuration is given, the inputs, and their names where they need them."""


def _transformers() -> list[Listed]:
    return [
        (name, partial(_configured, name, settings, *names), inputs)
        for name, (settings, inputs, *names) in TRANSFORMERS.items()
    ]


def _configured(name: str, settings: Settings, names: Sequence[str] = ()) -> nn.Module:
    import_torchvision()
    made = getattr(importlib.import_module("transformers"), name)
    config = made.config_class(**settings)
    config.use_cache = False
    return Named(made(config), names) if names else made(config)
