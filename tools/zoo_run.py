"""Every architecture of the model zoos: captured, shrunk at random, and held against its masked twin.

Usage: python -m tools.zoo_run [--zoo torchvision timm pytorchcv transformers] [--name REGEX] [--limit N]
       [--jobs 2] [--timeout 300] [--out docs/architectures.jsonl] [--page docs/architectures.md]

Each architecture has a process of its own, forked from this one, which has imported the zoos and computed
nothing. What it finds goes as one line into the file, with which a run that is started again goes on: names
that are there are not tried again. A process that crashes, hangs or needs more memory than there is makes a
line too. With ``--page`` the page is written in the end, from all lines of the file.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.metadata
import math
import multiprocessing
import os
import re
import resource
import signal
import statistics
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

import latmorph as lm
from latmorph import ops
from latmorph.files import write_whole
from tools.architectures import ZOOS, Architecture, Inputs, architectures
from tools.oracle import apart, masked_twin, outputs, random_structure, randomise
from tools.zoo import import_torchvision

SEED = 0
EXACT = {"float64": 1e-9, "float32": 1e-5}
"""The largest difference from the twin, over the largest output, that is rounding, by what is computed in."""
LESS = ("float32", "bfloat16", "float16")
"""A network that makes tensors of these computes less exactly than in the float64 that it is given."""
UNMOVED = 1e-12
"""A twin that differs from the network by no more has lost no channel that anything depends on."""

PASSED = ("passed", "passed in float32 arithmetic")
VERDICTS = {
    "passed": "the rebuilt network gives what the masked twin gives",
    "passed in float32 arithmetic": "the same, to 1e-5: the network computes in float32 whatever it is given",
    "oracle saw nothing": "the masked twin gives what the whole network gives, or no numbers",
    "nothing to prune": "every channel group is frozen, or no channel of the others was drawn",
    "named reason": "`shrink` says why it cannot",
    "not captured": "`capture` says why it cannot, `torch.export` having exported the network",
    "not exported": "`torch.export` does not export the network",
    "does not run": "the network itself cannot be built, or gives no numbers",
    "timeout": "not done in time",
    "out of memory": "not enough memory",
    "crashed": "an exception that does not say what to do, or the end of the process",
    "silent error": "the rebuilt network gives something else",
}
"""What a run can end in, from good to bad."""


class Record(msgspec.Struct, frozen=True):
    """What is known of one architecture; ``verdict`` is empty until all is.

    ``stage`` is what was done last: build, capture, shrink or compare. ``parameters`` and ``flops`` (at batch
    two) are the network's; ``parameters_share`` and ``flops_share`` the parts of them that belong to
    prunable groups, from 0 to 1. ``frozen`` counts channels by reason. ``error`` is how far the rebuilt
    network is from the twin and ``reaction`` how far the twin is from the network, over the largest output;
    None where they were not computed or are no numbers. ``rebuilt`` is "same class" or "graph". Times are
    in seconds, the process's peak memory in GiB.
    """

    zoo: str
    name: str
    verdict: str = ""
    reason: str = ""
    stage: str = "build"
    dtype: str = ""
    captured: bool = False
    parameters: int = 0
    flops: int = 0
    groups: int = 0
    prunable: int = 0
    channels: int = 0
    parameters_share: float = 0.0
    flops_share: float = 0.0
    frozen: dict[str, int] = {}
    error: float | None = None
    reaction: float | None = None
    rebuilt: str = ""
    capture_s: float = 0.0
    shrink_s: float = 0.0
    total_s: float = 0.0
    peak_gib: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """What a file has one record of."""
        return self.zoo, self.name

    @property
    def exported(self) -> bool:
        """Whether torch.export exported the network, as far as is known."""
        return self.captured or self.verdict == "not captured"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", nargs="+", default=list(ZOOS), choices=ZOOS)
    parser.add_argument("--name", default="", help="only names in which this regular expression is found")
    parser.add_argument("--limit", type=int, help="the most architectures of a zoo, for a trial")
    parser.add_argument("--jobs", type=int, default=2, help="architectures at a time")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one architecture")
    parser.add_argument("--out", type=Path, default=Path("docs/architectures.jsonl"))
    parser.add_argument("--page", type=Path, help="where to write the page, docs/architectures.md say")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    done = {r.key for r in read_records(args.out, Record)}
    todo: list[Architecture] = []
    for zoo in args.zoo:
        chosen = [a for a in architectures([zoo]) if re.search(args.name, a.name)][: args.limit]
        todo += [a for a in chosen if (a.zoo, a.name) not in done]
    Runner(args.out, args.timeout, begin, examine).run(todo, args.jobs)
    records = read_records(args.out, Record)
    for verdict, count in Counter(r.verdict for r in records).most_common():
        print(f"{count:5d} {verdict}")
    if args.page:
        write_whole(args.page, page(records).encode())


def read_records(path: Path, kind: type[Any]) -> list[Any]:
    """The records of a kind in a file, the last one of each key; none if there is no file."""
    found: dict[tuple[str, ...], Any] = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(msgspec.MsgspecError):  # the last line of an interrupted run
            record = msgspec.json.decode(line, type=kind)
            found[record.key] = record
    return list(found.values())


def prepare(zoos: Container[str]) -> None:
    """Import what examining architectures imports, so that a process forked from this one need not."""
    # Threads do not come along when a process is forked, and several of one network's wait for each other
    # for minutes where the machine has other work.
    torch.set_num_threads(1)
    if "transformers" in zoos:
        import_torchvision()
        importlib.import_module("transformers.modeling_utils")  # other zoos were imported to be listed
    lm.capture(nn.Linear(1, 1), (torch.zeros(1, 1),))


# One architecture, in its own process.

Say = Callable[..., None]
"""Takes what is newly known, as fields of a Record."""
Examine = Callable[[Any, Say], tuple[str, str]]
"""Takes an architecture and gives verdict and reason."""


def begin(architecture: Architecture) -> Record:
    """What is known of an architecture before it is examined."""
    return Record(architecture.zoo, architecture.name)


def work(architecture: Architecture, pipe: Connection, record: Any, examine: Examine) -> None:
    """Examine an architecture, and send what is known so far after each stage; the last has a verdict."""
    with contextlib.suppress(OSError):  # should memory run out, this process ends and not the one it is of
        Path("/proc/self/oom_score_adj").write_text("1000")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    started = time.perf_counter()

    def say(**news: Any) -> None:
        nonlocal record
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        news |= {"total_s": time.perf_counter() - started, "peak_gib": peak}
        record = msgspec.structs.replace(record, **news)
        pipe.send_bytes(msgspec.json.encode(record))

    try:
        verdict, reason = examine(architecture, say)
    except Exception as error:
        verdict, reason = verdict_of(error, record.stage)
    say(verdict=verdict, reason=reason)


def examine(architecture: Architecture, say: Say) -> tuple[str, str]:
    """Verdict and reason of one architecture. Raises what any stage raises."""
    model, inputs, before, dtype = ready(architecture)
    say(stage="capture", dtype=dtype)
    start = time.perf_counter()
    graph = lm.capture(model, inputs)
    say(stage="shrink", captured=True, capture_s=time.perf_counter() - start, **figures(graph))
    if not graph.prunable:
        return "nothing to prune", ""
    structure = random_structure(graph, SEED)
    removed = sum(group.width - len(group.kept) for group in structure.groups.values())
    if not removed:
        return "nothing to prune", "the prunable groups have hardly a channel each"
    start = time.perf_counter()
    small = lm.shrink(model, structure)
    rebuilt = "same class" if type(small) is type(model) else "graph"
    say(stage="compare", shrink_s=time.perf_counter() - start, rebuilt=rebuilt)
    twin = masked_twin(model, graph, structure)
    del model
    expected = outputs(twin, inputs)
    del twin
    reaction, error = apart(before, expected), apart(expected, outputs(small, inputs))
    say(reaction=reaction, error=error)
    if math.isinf(reaction):
        return "oracle saw nothing", "the masked twin gives no numbers"
    casts = any(t.dtype in LESS for t in graph.tensors if t.parameter is None)
    if error > (EXACT["float32"] if casts else EXACT[dtype]):
        return "silent error", f"differs from the masked twin by {error:.2g} of the largest output"
    if reaction <= UNMOVED:
        return "oracle saw nothing", f"masking {removed} channels changes no output"
    return ("passed" if error <= EXACT[dtype] else "passed in float32 arithmetic"), ""


Ready = tuple[nn.Module, Inputs, list[torch.Tensor], str]


def ready(architecture: Architecture) -> Ready:
    """The network with no constant weights, its inputs, what it gives, and what that was computed in.

    All in float64, or in float32 where the network itself runs in nothing else. Raises what the network
    raises, and ValueError where it gives no numbers.
    """
    try:
        return _ready(architecture, torch.float64)
    except Exception as error:
        if _out_of_memory(error):
            raise
    return _ready(architecture, torch.float32)


def _ready(architecture: Architecture, dtype: torch.dtype) -> Ready:
    model = architecture.build()
    randomise(model, SEED)
    model = model.double() if dtype is torch.float64 else model.float()
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in architecture.inputs())
    # Some networks keep in a dictionary what they worked out in eval mode; a copy may.
    before = outputs(copy.deepcopy(model), inputs)
    if not before or any(bool(x.isnan().any()) for x in before):
        raise ValueError("gives no numbers with random weights")
    return model, inputs, before, str(dtype).removeprefix("torch.")


def figures(graph: lm.Graph) -> dict[str, Any]:
    """What a Record says of a graph."""
    nodes = {i for g in graph.prunable for i in graph.nodes_of_group[g]}
    members = {m.parameter for g in graph.prunable for m in graph.groups[g].members}
    sizes = {t.parameter: torch.Size(t.shape).numel() for t in graph.tensors if t.trainable}
    frozen: Counter[str] = Counter()
    held = {t.parameter for t in graph.tensors if t.parameter}
    names = {node.module for node in graph.nodes} | held | {name.rpartition(".")[0] for name in held}
    for group in graph.groups:
        if group.frozen is not None:
            frozen[collapsed(group.frozen, names)] += group.width
    touched = sum(int(ops.flops(graph.nodes[i].spec)) for i in nodes)
    return {
        "parameters": graph.parameters,
        "flops": graph.flops,
        "groups": len(graph.groups),
        "prunable": len(graph.prunable),
        "channels": int(graph.widths.sum()),
        "parameters_share": sum(sizes[m] for m in members & sizes.keys()) / max(graph.parameters, 1),
        "flops_share": touched / max(graph.flops, 1),
        "frozen": dict(frozen),
    }


def collapsed(reason: str, modules: Iterable[str]) -> str:
    """A reason as other networks have it too: ``modules`` become "…" and numbers "#", operators stay.

    A module whose name is one word is taken for one only where a reason names a module: as its first word,
    or after "in".
    """
    known = {*modules} - {""}
    words: list[str] = []
    for word in reason.split():
        bare = word.strip("'\"`,:;()")
        place = "." in bare or not words or words[-1] == "in"
        words.append(word.replace(bare, "…") if bare in known and place else word)
    return re.sub(r"(?<![a-z_])\d+", "#", " ".join(words))


def verdict_of(error: Exception, stage: str) -> tuple[str, str]:
    """What an exception in a stage means, and what it says."""
    if _out_of_memory(error):
        return "out of memory", f"{stage}: {said(error)}"
    if stage == "build":
        return "does not run", said(error)
    if stage == "capture" and isinstance(error, lm.LatmorphError):
        cause = error.__cause__
        if cause is not None and not isinstance(cause, lm.LatmorphError):
            return "not exported", said(cause)
        return "not captured", said(error)
    if isinstance(error, lm.LatmorphError):
        return "named reason", said(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if {"latmorph", "torch_pruning"} & {*Path(f.filename).parts}] or frames
    return "crashed", f"{stage}: {said(error)} ({Path(own[-1].filename).name}:{own[-1].lineno})"


def said(error: BaseException) -> str:
    """The class of an exception and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or bool(re.search("(not enough|can.t allocate) memory", str(error)))


# All of them.


@dataclass
class Task:
    """An architecture in its process: what is known so far, and since when it runs."""

    architecture: Architecture
    process: BaseProcess
    pipe: Connection
    record: Any
    since: float


class Runner:
    """Runs ``examine`` on architectures in processes, and appends their records to ``out`` as they end.

    ``begin`` makes the record of one that nothing is known of yet. One that takes longer than ``timeout``
    seconds is ended.
    """

    def __init__(self, out: Path, timeout: float, begin: Callable[[Any], Any], examine: Examine) -> None:
        self.out = out
        self.timeout = timeout
        self.begin = begin
        self.examine = examine
        # A process forked from one that has imported the zoos starts at once.
        self.context = multiprocessing.get_context("fork")

    def run(self, todo: Sequence[Architecture], jobs: int) -> None:
        """Run them, ``jobs`` at a time; those that ran out of memory beside another then once more, alone."""
        if not todo:
            return
        prepare({a.zoo for a in todo})
        self.out.parent.mkdir(parents=True, exist_ok=True)
        again = self._run(todo, jobs)
        if again:
            self._run(again, 1)

    def _run(self, todo: Sequence[Architecture], jobs: int) -> list[Architecture]:
        waiting, running, again = deque(todo), list[Task](), list[Architecture]()
        columns = (TextColumn("{task.description:50.50}"), BarColumn(20), MofNCompleteColumn())
        # No thread of its own that refreshes it: a process with threads cannot be forked safely.
        with Progress(*columns, TimeElapsedColumn(), auto_refresh=False, console=Console()) as progress:
            bar = progress.add_task("", total=len(todo))
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(self._start(waiting.popleft()))
                progress.update(bar, description=", ".join(t.architecture.name for t in running))
                progress.refresh()
                wait([task.pipe for task in running], timeout=1.0)
                for task in [t for t in running if self._ended(t)]:
                    running.remove(task)
                    if task.record.verdict == "out of memory" and jobs > 1:
                        again.append(task.architecture)
                        continue
                    self._append(task.record)
                    progress.advance(bar)
                    r = task.record
                    progress.print(
                        f"{r.total_s:6.1f} s  {r.zoo} {r.name}: {r.verdict} {r.reason[:100]}",
                        markup=False,
                        soft_wrap=True,
                    )
        return again

    def _start(self, architecture: Architecture) -> Task:
        receiver, sender = self.context.Pipe(duplex=False)
        known = self.begin(architecture)
        given = (architecture, sender, known, self.examine)
        process = self.context.Process(target=work, args=given, daemon=True)
        process.start()
        sender.close()
        return Task(architecture, process, receiver, known, time.perf_counter())

    def _ended(self, task: Task) -> bool:
        """Take in what a task has sent, and say whether it has ended; then its record has a verdict."""
        late = time.perf_counter() - task.since > self.timeout
        try:
            while task.pipe.poll():
                task.record = msgspec.json.decode(task.pipe.recv_bytes(), type=type(task.record))
            if not late:
                return False
            task.process.kill()
        except EOFError:
            late = False
        task.process.join()
        task.pipe.close()
        if not task.record.verdict:
            task.record = self._cut_short(task, late)
        return True

    def _cut_short(self, task: Task, late: bool) -> Any:
        """The record of a process that ended without a verdict."""
        code = task.process.exitcode or 0
        if late:
            verdict, reason = "timeout", f"after {self.timeout:.0f} s"
        elif code == -signal.SIGKILL:
            verdict, reason = "out of memory", "ended by the system"
        else:
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            verdict, reason = "crashed", f"the process ended: {how}"
        took = time.perf_counter() - task.since
        return msgspec.structs.replace(
            task.record, verdict=verdict, reason=f"{task.record.stage}: {reason}", total_s=took
        )

    def _append(self, record: Any) -> None:
        with self.out.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # half a line of an interrupted run
                    file.write(b"\n")
            file.write(msgspec.json.encode(record) + b"\n")


# The page.

FREQUENT = 40
"""So many reasons of frozen channels are on the page."""


def page(records: Sequence[Record]) -> str:
    """The page on architectures, of at least one record."""
    ordered = sorted(records, key=lambda r: (ZOOS.index(r.zoo), r.name))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", *ZOOS))
    return "\n\n".join(
        (
            INTRODUCTION,
            f"With {versions}.",
            "| verdict | what it means |\n| --- | --- |\n"
            + "\n".join(f"| {verdict} | {meaning} |" for verdict, meaning in VERDICTS.items()),
            "## Summary",
            summary_table(ordered),
            "## What does not pass, and why",
            failures_table(ordered),
            "## Why channels are frozen",
            frozen_table(ordered),
            "## Every architecture",
            whole_table(ordered),
            "",
        )
    )


def summary_table(records: Sequence[Record]) -> str:
    """One row a zoo, and one of all."""
    head = (
        *(
            "zoo",
            "architectures",
            "exported by torch.export",
            "captured",
            "passed",
            "ended in a named reason",
        ),
        *("nothing to prune", "silent errors", "other", "median prunable share of FLOPs", "of parameters"),
    )
    named = ("named reason", "not captured", "not exported")
    rows = []
    for zoo in (*ZOOS, "all"):
        here = [r for r in records if zoo in (r.zoo, "all")]
        if here:
            captured = [r for r in here if r.captured]
            count = Counter(r.verdict for r in here)
            shown = (*PASSED, *named, "nothing to prune", "silent error")
            rows.append(
                (
                    *(zoo, len(here), sum(r.exported for r in here), len(captured)),
                    *(sum(count[v] for v in PASSED), sum(count[v] for v in named)),
                    *(count["nothing to prune"], count["silent error"]),
                    len(here) - sum(count[v] for v in shown),
                    _median(r.flops_share for r in captured),
                    _median(r.parameters_share for r in captured),
                )
            )
    return table(head, rows, numbers_from=1)


def failures_table(records: Sequence[Record]) -> str:
    """One row an architecture that does not pass, the worst first."""
    order = list(VERDICTS)
    failed = sorted(
        (r for r in records if r.verdict not in PASSED), key=lambda r: order.index(r.verdict), reverse=True
    )
    rows = [(r.zoo, r.name, r.verdict, cell(r.reason)) for r in failed]
    return table(("zoo", "architecture", "verdict", "reason"), rows) if rows else "None."


def frozen_table(records: Sequence[Record]) -> str:
    """The reasons that freeze channels in most architectures."""
    channels: Counter[str] = Counter()
    networks: Counter[str] = Counter()
    for r in records:
        channels.update(r.frozen)
        networks.update(r.frozen.keys())
    total = sum(r.channels for r in records)
    rows = [
        (cell(reason), count, channels[reason], f"{100 * channels[reason] / max(total, 1):.1f} %")
        for reason, count in sorted(networks.items(), key=lambda item: (-item[1], item[0]))[:FREQUENT]
    ]
    return table(("reason", "architectures", "channels", "of all channels"), rows, numbers_from=1)


def whole_table(records: Sequence[Record]) -> str:
    """One row an architecture."""
    head = (
        *("architecture", "verdict", "parameters", "GFLOPs", "groups", "prunable", "of FLOPs"),
        *("of parameters", "rebuilt", "error", "capture", "total", "memory"),
    )
    rows = [
        (
            *(f"{r.zoo} {r.name}", r.verdict, f"{r.parameters / 1e6:.1f} M", f"{r.flops / 1e9:.2f}"),
            *(r.groups, r.prunable, percent(r.flops_share), percent(r.parameters_share), r.rebuilt),
            "" if r.error is None else f"{r.error:.0e}",
            *(f"{r.capture_s:.1f} s", f"{r.total_s:.1f} s", f"{r.peak_gib:.1f} GiB"),
        )
        for r in records
    ]
    return table(head, rows, numbers_from=2)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers_from: int | None = None) -> str:
    """A table in Markdown; columns from ``numbers_from`` on stand to the right."""
    rule = [":---" if numbers_from is None or i < numbers_from else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(str(part) for part in row) + " |" for row in (head, rule, *rows))


def cell(text: str, longest: int = 240) -> str:
    """A text as a table's cell can hold it, cut where it is longer than ``longest``."""
    text = text if len(text) <= longest else text[:longest] + "…"
    return text.replace("|", "\\|").replace("<", "&lt;")


def percent(share: float) -> str:
    """A share of one, in per cent."""
    return f"{100 * share:.0f} %"


def _median(shares: Iterable[float]) -> str:
    found = list(shares)
    return percent(statistics.median(found)) if found else ""


INTRODUCTION = """# Architectures: what is captured, what can be pruned, and whether what is rebuilt is right

Written by `python -m tools.zoo_run`.

**Architectures.** Of torchvision every classifier, segmenter and video network; of timm and pytorchcv one of
every family and every variant of it, the smallest; of transformers small configurations
(`tools/architectures.py`). Weights are random, batches are of two.

**What is done.** Parameters and buffers that are constant (biases, scales, batch norm statistics) get random
values. The network is captured, three channels in ten of every prunable group are removed at random, and it
is rebuilt. What the rebuilt network gives is compared, in float64, with the **masked twin**: a copy at full
size in which removed channels are zero where they are made and where they are read (`tools/oracle.py`). The
error is the largest difference over the largest output; rounding is at most 1e-9, or 1e-5 where a network
computes in float32.

**Shares.** The part of the network's FLOPs that operators do which touch a prunable group, and the part of
its parameters that are members of one."""


if __name__ == "__main__":
    main()
