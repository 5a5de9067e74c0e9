"""The page docs/torch-pruning.md: what :mod:`tools.torch_pruning` has found, of both tools."""

from __future__ import annotations

import importlib.metadata
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from tools.zoo_run import cell, percent, table

TOOLS = ("latmorph", "Torch-Pruning")
ZOOS = ("torchvision", "cases", "timm")
PASSED = ("passed", "passed at the new width")
VERDICTS = {
    "passed": "the pruned network gives what the masked twin gives",
    "passed at the new width": "the same, of a twin whose norms and attention take the width that is left: "
    "outputs move even where what was removed was zero",
    "hardly anything removed": "right, with less than 1 % of parameters and of FLOPs gone",
    "oracle saw nothing": "the masked twin gives what the whole network gives, or nothing to compare",
    "oracle cannot tell": "the pruned network differs from the twin, and may be right all the same",
    "nothing pruned": "the tool found nothing that it could remove",
    "named reason": "the tool says why it cannot",
    "not captured": "`lm.capture` says why it cannot",
    "not exported": "`torch.export`, which latmorph builds on, does not export the network",
    "does not run": "the network itself cannot be built or run",
    "out of memory": "not enough memory",
    "timeout": "not done in time",
    "crashed": "an exception, while pruning or when the pruned network is run",
    "weights untied": "what were one tensor are several, of different values in training",
    "silent error": "the pruned network runs and gives something else",
}
"""What a trial can end in, from good to bad."""


class Record(msgspec.Struct, frozen=True):
    """What is known of one tool on one architecture; ``verdict`` is empty until all is.

    ``parameters`` and ``flops`` (multiply-adds are two) are the whole network's, the ``removed`` ones shares
    of them from 0 to 1. ``error`` is how far the pruned network is from the twin, ``reaction`` how far the
    twin is from the whole network, over the largest output. ``tool_s`` are processor seconds.
    """

    tool: str
    zoo: str
    name: str
    verdict: str = ""
    reason: str = ""
    stage: str = "build"
    dtype: str = ""
    parameters: int = 0
    flops: int = 0
    parameters_removed: float | None = None
    flops_removed: float | None = None
    error: float | None = None
    reaction: float | None = None
    tool_s: float | None = None
    total_s: float = 0.0
    peak_gib: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """What a file has one record of."""
        return self.tool, self.zoo, self.name


def page(records: Sequence[Record]) -> str:
    """The page, on the architectures that both tools were tried on."""
    ordered = sorted(records, key=lambda r: (ZOOS.index(r.zoo), r.name, TOOLS.index(r.tool)))
    names = ("latmorph", "torch-pruning", "torch", "torchvision", "timm")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    pairs = paired(ordered)
    both = [r for pair in pairs for r in pair]
    meaning = [(v, VERDICTS[v]) for v in VERDICTS if any(r.verdict == v for r in both)]
    ours_only = [(a, b) for a, b in pairs if a.verdict in PASSED and b.verdict not in PASSED]
    peer_only = [(a, b) for a, b in pairs if b.verdict in PASSED and a.verdict not in PASSED]
    return "\n\n".join(
        (
            INTRODUCTION,
            f"With {versions}.",
            table(("verdict", "what it means"), meaning),
            "## Summary",
            summary(both),
            medians(pairs),
            "## Where Torch-Pruning is right and latmorph is not",
            one_sided(peer_only),
            "## Where latmorph is right and Torch-Pruning is not",
            one_sided(ours_only),
            "## What else to know",
            NOTES,
            "## Every architecture",
            whole(pairs),
            "",
        )
    )


def paired(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """What both tools made of each architecture that both were tried on."""
    by_name = defaultdict(list)
    for r in records:
        by_name[r.zoo, r.name].append(r)
    return [(found[0], found[1]) for found in by_name.values() if len(found) == len(TOOLS)]


def summary(records: Sequence[Record]) -> str:
    """One row a verdict, the number of architectures by zoo and tool."""
    groups = [(zoo, tool) for zoo in (*ZOOS, "all") for tool in TOOLS]
    rows = []
    for verdict in VERDICTS:
        counts = [
            sum(r.verdict == verdict and r.tool == tool and zoo in (r.zoo, "all") for r in records)
            for zoo, tool in groups
        ]
        if any(counts):
            rows.append((verdict, *(count or "" for count in counts)))
    return table(("verdict", *(f"{zoo}: {tool}" for zoo, tool in groups)), rows, numbers_from=1)


def medians(pairs: Sequence[tuple[Record, Record]]) -> str:
    """A paragraph on what was removed, and in what time, where both tools pass."""
    both = [pair for pair in pairs if all(r.verdict in PASSED for r in pair)]
    if not both:
        return "No architecture passes with both."
    said = []
    for at, tool in enumerate(TOOLS):
        median = [
            statistics.median(x for x in found if x is not None)
            for found in zip(
                *((p[at].parameters_removed, p[at].flops_removed, p[at].tool_s) for p in both), strict=True
            )
        ]
        said.append(
            f"{tool} {percent(median[0])} of the parameters and {percent(median[1])} of the FLOPs, "
            f"in {median[2]:.1f} s"
        )
    more = sum((b.flops_removed or 0) > (a.flops_removed or 0) + 0.02 for a, b in both)
    return (
        f"On the {len(both)} architectures where both pass, the median of what is removed is: "
        f"{'; '.join(said)}. Torch-Pruning removes more of the FLOPs, by over 2 points, on {more} of them."
    )


def one_sided(pairs: Sequence[tuple[Record, Record]]) -> str:
    """One row an architecture that one tool gets right and the other does not."""
    rows = [(f"{a.zoo} {a.name}", *(_ending(r) for r in (a, b))) for a, b in pairs]
    return table(("architecture", *TOOLS), rows) if rows else "Nowhere."


def _ending(r: Record) -> str:
    return f"{r.verdict}: {cell(r.reason, 160)}" if r.reason else r.verdict


def whole(pairs: Sequence[tuple[Record, Record]]) -> str:
    """One row an architecture; parameters and FLOPs as they were, and by tool what became of them."""
    rows = [
        (f"{a.zoo} {a.name}", f"{a.parameters / 1e6:.2f} M", f"{a.flops / 1e9:.2f}", *_half(a), *_half(b))
        for a, b in pairs
    ]
    columns = ("verdict", "error", "parameters removed", "FLOPs removed", "seconds")
    head = [f"{tool}: {column}" for tool in TOOLS for column in columns]
    return table(("architecture", "parameters", "GFLOPs", *head), rows, numbers_from=1)


def _half(r: Record) -> Iterable[str]:
    error = "" if r.error is None else f"{r.error:.0e}"
    shares = ("" if x is None else percent(x) for x in (r.parameters_removed, r.flops_removed))
    return r.verdict, error, *shares, "" if r.tool_s is None else f"{r.tool_s:.1f}"


INTRODUCTION = """# latmorph and Torch-Pruning, side by side

Written by `python -m tools.torch_pruning`.

[Torch-Pruning](https://github.com/VainF/Torch-Pruning) (MIT) finds dependent channels in the graph that
autograd records. Here both tools get the same networks, with the same random weights and no constant ones,
and the same inputs; each removes three channels in ten, at random, of every group that it says it can prune.

**Architectures.** Torch-Pruning's own list of torchvision models (85 of them, four of which it names as
unsuccessful there), small cases of what is known to be hard, and some of timm. Batches are of one;
torchvision's pictures have 128 pixels a side where a network takes any.

**The oracle.** What the pruned network gives is compared, in float64, with a *masked twin*: a copy at full
size in which everything that was removed is zero, where it is made and where it is read. The error is the
largest difference over the largest output; up to 1e-9 is rounding, or 1e-5 where a network computes in
float32 itself. latmorph's twin is made from its channel groups (`tools/oracle.py`), Torch-Pruning's from the
weights that it really removed: while it prunes, every weight is the number of its own place.

**Norms and attention.** Torch-Pruning also removes channels that layer and group norms take their statistics
over, and that attention divides its scores by the number of. What is left then computes something else even
where what was removed was zero: a network as if designed narrower. That is no mistake: its twin takes
statistics and scores over the channels that are left, and such networks are marked *at the new width*.
latmorph freezes the channels of those norms, and keeps the scale of attention, so that removing zeros changes
nothing; it removes less there.

**How Torch-Pruning is called.** As its examples call it: `BasePruner` with `RandomImportance`, layers that
make outputs left alone, the layers that its examples ignore in detectors, the number of attention heads
given, the attributes that hold sizes set after pruning, attention of timm not fused. For torchvision's
attention the heads are given as `out_channel_groups`, in place of its example's `round_to`.

**How latmorph is called.** `lm.capture` and `lm.shrink`. The detectors decide by values how many boxes there
are, which `torch.export` refuses; for them what is captured is a module of twenty lines that holds the
detector and calls all of its layers (`Dense` in `tools/torch_pruning_networks.py`). What is compared is the
whole detector.

**Seconds** are processor time of tracing and pruning, one thread. A tool has 120 of them (*timeout*)."""

NOTES = """\
- Torch-Pruning traces and prunes in a fraction of latmorph's time, and takes the detectors as they are.
  Of those with one stage the outputs of the head are compared, of those with two the boxes.
- In vision transformers and in ConvNeXt it narrows the residual stream, whose layer norms latmorph
  freezes.
- Given `round_to` alone, as in its example for torchvision's vision transformers, it takes channels from
  some heads of attention and not from others, and what is left of one head is computed in another: on a
  transformer of two layers, 4 heads and 64 channels 6 % of the largest output. With `out_channel_groups`,
  as here, it is right.
- ShuffleNetV2 ends in an exception (as with its example's settings); a channel shuffle between ordinary
  convolutions, the case above, is pruned and silently wrong.
- In ConvNeXtV2, response norms take means over channels. With sums in their place, in what is pruned as
  in its twin, the two agree to 1e-15."""
