"""latmorph and Torch-Pruning side by side, under one oracle, on Torch-Pruning's own models and beyond.

Usage: python -m tools.torch_pruning [--tool latmorph Torch-Pruning] [--zoo torchvision cases timm]
       [--name REGEX] [--jobs 2] [--timeout 120] [--out docs/torch-pruning.jsonl]
       [--page docs/torch-pruning.md]

Both get the same network with the same random weights and the same inputs, remove three channels in ten at
random of all that they say can be removed, and what is left is compared with a masked twin. Each tool and
architecture has a process of its own, as in :mod:`tools.zoo_run`; ``--timeout`` are seconds of processor time
for the tool itself. To have Torch-Pruning: ``pip install -c constraints.txt -r requirements-peers.txt``.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import math
import re
import signal
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import latmorph as lm
from latmorph.files import write_whole
from tools.architectures import Architecture, Inputs
from tools.oracle import apart, masked_twin, outputs, random_structure, randomise
from tools.torch_pruning_networks import Dense, is_detector, listed
from tools.torch_pruning_page import TOOLS, ZOOS, Record, page
from tools.zoo_run import EXACT, SEED, UNMOVED, Runner, Say, prepare, read_records

SHARE = 0.3
"""The share of channels that is removed of every group."""
HARDLY = 0.01
"""A network that keeps all but this share of its parameters, and of its FLOPs, has hardly been pruned."""

PATIENCE = 10
"""A trial is ended after so many times a tool's limit, whatever it does: others may have the processor."""

UNTOLD = {"convnextv2_atto": "its response norms take means over channels, also over those that are zero"}
"""Architectures whose twin is not the narrower network, and why: a difference from it tells nothing."""


@dataclass(frozen=True)
class Trial(Architecture):
    """An architecture in the hands of a tool, which has ``limit_s`` seconds of processor time."""

    tool: str
    limit_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--zoo", nargs="+", default=list(ZOOS), choices=ZOOS)
    parser.add_argument("--name", default="", help="only names in which this regular expression is found")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--timeout", type=float, default=120.0, help="processor seconds for a tool")
    parser.add_argument("--out", type=Path, default=Path("docs/torch-pruning.jsonl"))
    parser.add_argument("--page", type=Path, help="where to write the page, docs/torch-pruning.md say")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    done = {r.key for r in read_records(args.out, Record)}
    todo = [
        Trial(a.zoo, a.name, a.build, a.inputs, tool, args.timeout)
        for a in listed(args.zoo)
        for tool in args.tool
        if re.search(args.name, a.name) and (tool, a.zoo, a.name) not in done
    ]
    if any(t.tool == "Torch-Pruning" for t in todo):
        peer()
    prepare(args.zoo)
    Runner(args.out, PATIENCE * args.timeout, begin, examine).run(todo, args.jobs)
    records = read_records(args.out, Record)
    for (tool, verdict), count in sorted(Counter((r.tool, r.verdict) for r in records).items()):
        print(f"{count:5d} {tool}: {verdict}")
    if args.page:
        write_whole(args.page, page(records).encode())


def peer() -> Any:
    """The package torch_pruning. Ends the program, saying how to install it, where it is not."""
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise SystemExit(
            f"Torch-Pruning cannot be imported ({error}); install it with "
            "pip install -c constraints.txt -r requirements-peers.txt"
        ) from error


# One trial, in its own process.


def begin(trial: Trial) -> Record:
    """What is known of a trial before it starts."""
    return Record(trial.tool, trial.zoo, trial.name)


@dataclass
class Pruned:
    """What a tool has left of a network, and the twin that this must agree with.

    ``narrow`` holds, by the id of a norm's weight in the twin, the channels that are left of it;
    ``new_width`` tells whether the twin computes with any such width, ``blind`` why it may be wrong.
    ``tool_s`` are the seconds of processor time for tracing and pruning.
    """

    small: nn.Module
    twin: nn.Module
    tool_s: float
    narrow: dict[int, torch.Tensor]
    new_width: bool = False
    blind: str = ""


def examine(trial: Trial, say: Say) -> tuple[str, str]:
    """Verdict and reason of one trial. Raises what any stage raises."""
    torch.backends.mha.set_fastpath_enabled(False)  # whose FLOPs the counter does not know
    try:
        model, inputs, before, flops = _ready(trial, torch.float64)
    except (RuntimeError, TypeError):
        model, inputs, before, flops = _ready(trial, torch.float32)
    size, ties = parameters(model), tied(model)
    say(parameters=size, flops=flops, dtype=str(before[0].dtype).removeprefix("torch."))
    prune = by_latmorph if trial.tool == "latmorph" else by_torch_pruning
    try:
        with processor_limit(trial.limit_s):
            pruned = prune(model, inputs, trial.name, say)
    except TimeoutError as error:
        return "timeout", str(error)
    if pruned is None:
        return "nothing pruned", ""
    del model
    gone = 1 - parameters(pruned.small) / size
    say(stage="compare", tool_s=pruned.tool_s, parameters_removed=gone)
    given, left = counted(pruned.small, inputs)
    less = 1 - left / flops if flops else 0.0
    held = named_tensors(pruned.small)
    untied = [n for n in ties if len({id(held[name]) for name in n if name in held}) > 1]
    pruned.small = nn.Module()
    with NewWidth(pruned.narrow):
        expected = outputs(pruned.twin, inputs)
    reaction, error = apart(before, expected), apart(expected, given)
    say(flops_removed=less, reaction=finite(reaction), error=finite(error))
    if not any(x.numel() for x in expected) or any(bool(x.isnan().any()) for x in expected):
        return "oracle saw nothing", "the masked twin gives nothing, or no numbers"
    if error > EXACT["float32"]:
        blind = pruned.blind or UNTOLD.get(trial.name, "")
        reason = f"differs from the masked twin by {error:.2g} of the largest output"
        return ("oracle cannot tell", f"{reason}; {blind}") if blind else ("silent error", reason)
    if untied:
        return "weights untied", ", ".join(" and ".join(names) for names in untied)
    if reaction <= UNMOVED:
        return "oracle saw nothing", "masking changes no output"
    if max(gone, less) < HARDLY:
        return "hardly anything removed", ""
    reason = "" if error <= EXACT["float64"] else "to 1e-5: computes in float32"
    return ("passed at the new width" if pruned.new_width else "passed"), reason


@contextmanager
def processor_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block once this process has spent so much processor time in it."""

    def ended(*_: object) -> None:
        raise TimeoutError(f"after {seconds:.0f} s of processor time")

    before = signal.signal(signal.SIGPROF, ended)
    signal.setitimer(signal.ITIMER_PROF, seconds, 10.0)  # again, where the first is caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def _ready(trial: Architecture, dtype: torch.dtype) -> tuple[nn.Module, Inputs, list[torch.Tensor], int]:
    model = trial.build()
    randomise(model, SEED)
    model = model.to(dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in trial.inputs())
    # A copy: some networks keep in a dictionary what they worked out in eval mode.
    before, flops = counted(copy.deepcopy(model), inputs)
    return model, inputs, before, flops


def counted(model: nn.Module, inputs: Inputs) -> tuple[list[torch.Tensor], int]:
    """What a model gives, and the FLOPs of that by torch's counter. Raises what forward raises."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        given = outputs(model, inputs)
    return given, counter.get_total_flops()


def finite(x: float) -> float | None:
    """None in place of what JSON has no word for."""
    return x if math.isfinite(x) else None


def parameters(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Floating-point parameters and buffers by all the names they have."""
    held = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: x for name, x in itertools.chain(*held) if x.is_floating_point()}


def tied(model: nn.Module) -> list[list[str]]:
    """The names of every parameter that has several."""
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [n for n in names.values() if len(n) > 1]


def by_latmorph(model: nn.Module, inputs: Inputs, name: str, say: Say) -> Pruned | None:
    """Shrunk by latmorph; None where every group is frozen.

    A detector decides by values how many boxes there are, which torch.export refuses: what is captured is a
    module that holds it and calls all of its layers; what is left of that holds what is left of the detector.
    """
    start = time.process_time()
    say(stage="capture")
    if is_detector(name):
        model, inputs = Dense(model), Dense.inputs(model, inputs)
    graph = lm.capture(model, inputs)
    say(stage="prune")
    structure = random_structure(graph, SEED, SHARE)
    if all(len(g.kept) == g.width for g in structure.groups.values()):
        return None
    small = lm.shrink(model, structure)
    took = time.process_time() - start
    twin = masked_twin(model, graph, structure)
    if isinstance(model, Dense):
        return Pruned(small.get_submodule("detector"), twin.get_submodule("detector"), took, {})
    return Pruned(small, twin, took, {})


# Torch-Pruning.

IGNORED: dict[str, tuple[str, ...]] = {
    "ssd": ("head",),
    "fasterrcnn": ("rpn.head.cls_logits", "rpn.head.bbox_pred", "backbone.fpn", "roi_heads"),
    "fcos": (
        *("head.classification_head.cls_logits", "head.regression_head.bbox_reg"),
        "head.regression_head.bbox_ctrness",
    ),
    "keypointrcnn": (
        *("rpn.head.cls_logits", "rpn.head.bbox_pred", "backbone.fpn.layer_blocks", "roi_heads.box_head"),
        *("roi_heads.box_predictor", "roi_heads.keypoint_predictor"),
    ),
    "maskrcnn": (
        *("rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor"),
        "roi_heads.mask_predictor",
    ),
    "retinanet": ("head.classification_head.cls_logits", "head.regression_head.bbox_reg"),
    "raft": ("corr_block", "update_block", "mask_predictor"),
}
"""Modules that Torch-Pruning's example leaves alone, by how the model's name begins."""


def by_torch_pruning(model: nn.Module, inputs: Inputs, name: str, say: Say) -> Pruned | None:
    """Pruned by Torch-Pruning as its examples do it; None where it finds no group to prune.

    In all of them the layers that make the outputs are left alone, heads of attention keep one width, and
    attributes that a network keeps sizes in are set after pruning.

    What it removes is read off the tensors: before it prunes, every tensor holds the positions of its own
    elements. Afterwards they tell where each element that is left was, and the weights go where they belong.
    """
    say(stage="prune")
    tp = peer()
    torch.manual_seed(SEED)
    twin = copy.deepcopy(model)
    for names in tied(twin):
        for other in names[1:]:
            owner, _, leaf = other.rpartition(".")
            module = twin.get_submodule(owner)
            setattr(module, leaf, nn.Parameter(getattr(module, leaf).detach().clone()))
    start = time.process_time()
    heads: dict[nn.Module, int] = {}
    grouped: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            grouped[module] = module.num_heads
        elif isinstance(getattr(module, "qkv", None), nn.Linear) and hasattr(module, "num_heads"):
            heads[module.qkv] = module.num_heads
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.RandomImportance(),
        pruning_ratio=SHARE,
        ignored_layers=[
            model.get_submodule(path) for key in IGNORED if name.startswith(key) for path in IGNORED[key]
        ],
        num_heads=heads,
        out_channel_groups=grouped,
    )
    pruner.ignored_layers.extend(last_layers(pruner.DG))
    paused = time.process_time()
    model.double()
    positions(model)
    start += time.process_time() - paused
    found = 0
    for group in pruner.step(interactive=True):
        group.prune()
        found += 1
    for module in model.modules():
        if hasattr(module, "hidden_dim") and hasattr(module, "conv_proj"):
            module.hidden_dim = module.conv_proj.out_channels
        if getattr(module, "qkv", None) in heads:
            module.attn_dim = module.qkv.out_features // 3
            module.head_dim = module.attn_dim // module.num_heads
    took = time.process_time() - start
    if not found:
        return None
    return resolved(model, twin, took)


def last_layers(graph: Any) -> list[nn.Module]:
    """Of a DependencyGraph the layers whose outputs reach the network's with no other layer between."""
    layers = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.LSTM, nn.MultiheadAttention)
    stack = [node for node in graph.module2node.values() if not node.outputs]
    found, seen = [], set(stack)
    while stack:
        node = stack.pop()
        if isinstance(node.module, layers):
            found.append(node.module)
            continue
        stack.extend(n for n in node.inputs if n not in seen)
        seen.update(node.inputs)
    return found


@torch.no_grad()
def positions(model: nn.Module) -> None:
    """Make every element the number of its place in its tensor. The model has to be in float64."""
    for x in named_tensors(model).values():
        x.copy_(torch.arange(x.numel(), dtype=torch.float64).view(x.shape))


@torch.no_grad()
def resolved(small: nn.Module, twin: nn.Module, took: float) -> Pruned:
    """From positions in ``small``, pruned, and weights in ``twin``, whole: the two to compare.

    ``small`` gets its weights back; in ``twin`` those that are gone are zero.
    """
    whole, indices = named_tensors(twin), dict[int, torch.Tensor]()
    dtype = next(iter(whole.values())).dtype
    pruned = Pruned(small, twin, took, {})
    left: dict[str, torch.Tensor] = {}
    for name, x in named_tensors(small).items():
        if id(x) not in indices:
            indices[id(x)] = x.detach().round().long()
            x.copy_(whole[name].flatten()[indices[id(x)]])
        alive = torch.zeros(whole[name].numel(), dtype=torch.bool)
        alive[indices[id(x)].flatten()] = True
        if not alive.all() and isinstance(whole[name], nn.Parameter):
            whole[name].mul_(alive.view(whole[name].shape))
            left[name] = alive.nonzero().flatten()
    small.to(dtype)
    for name, module in twin.named_modules():
        now: Any = small.get_submodule(name)
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            width = "normalized_shape" if isinstance(module, nn.LayerNorm) else "num_channels"
            if getattr(module, width) != getattr(now, width):
                pruned.new_width = True
                if f"{name}.weight" in left:
                    pruned.narrow[id(module.weight)] = left[f"{name}.weight"]
                else:
                    pruned.blind = "a norm without weights does not tell which channels are left"
        elif isinstance(module, nn.MultiheadAttention) and module.embed_dim != now.embed_dim:
            pruned.new_width = True
            wide = math.sqrt(module.head_dim / now.head_dim)  # scores are divided by the root of it
            module.in_proj_weight[: module.embed_dim] *= wide
            if module.in_proj_bias is not None:
                module.in_proj_bias[: module.embed_dim] *= wide
    return pruned


class NewWidth(TorchFunctionMode):
    """Layer and group norms over the channels that are left, by the id of their weight; others are zero."""

    def __init__(self, left: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.left = left

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        norms = {F.layer_norm: "normalized_shape", F.group_norm: "num_groups"}
        if func in norms:
            given = dict(zip(("input", norms[func], "weight", "bias", "eps"), args, strict=False))
            given |= kwargs or {}
            at = self.left.get(id(given.get("weight")))
            if at is not None:
                return self._narrow(func, given, at)
        return func(*args, **(kwargs or {}))

    def _narrow(self, func: Any, given: dict[str, Any], at: torch.Tensor) -> torch.Tensor:
        x = given["input"]
        axis = x.ndim - 1 if func is F.layer_norm else 1
        given = given | {n: given[n][at] for n in ("weight", "bias") if given.get(n) is not None}
        if func is F.layer_norm:
            given["normalized_shape"] = (len(at),)
        narrow = func(**given | {"input": x.index_select(axis, at)})
        return torch.zeros_like(x).index_copy_(axis, at, narrow)


if __name__ == "__main__":
    main()
