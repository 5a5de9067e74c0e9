"""Predicted against measured, end to end, on six known networks that no profile was fitted on.

Usage: python -m tools.accuracy [--device cpu] [--threads 1 2] [--batch 1] [--profile NAME] [-o docs/accuracy]

For each number of threads: takes the profile named, or this machine's newest, predicts every network and
measures all of them side by side, several rounds over. Raw samples and figures go into one JSON
a machine and setting; ``docs/accuracy.md`` is written anew from all of those JSONs.
"""

from __future__ import annotations

import argparse
import datetime
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

import latmorph as lm
from latmorph.files import write_whole
from latmorph.latency.profile import Profile
from latmorph.report.measured import measure_together
from latmorph.report.tables import time_text
from tools.networks import NETWORKS

ROUNDS = 3
"""Rounds in which everything is measured again: their disagreement is the machine's own noise."""


class NetworkFigures(msgspec.Struct, frozen=True):
    """One network. Times are seconds; ``rounds_s`` holds the calm time that each round found."""

    name: str
    flops: int
    predicted_s: float
    interval_s: tuple[float, float]
    rounds_s: tuple[float, ...]
    samples_s: tuple[tuple[float, ...], ...]
    references_s: tuple[tuple[float, ...], ...]

    @property
    def measured_s(self) -> float:
        """The median of the rounds' calm times."""
        return float(np.median(self.rounds_s))

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def repeatability(self) -> float:
        """Largest disagreement of two rounds, as a fraction of the smaller."""
        return max(self.rounds_s) / min(self.rounds_s) - 1

    @property
    def raw_spread(self) -> float:
        """Half the interquartile range of all raw samples over their median."""
        low, mid, high = np.quantile(np.concatenate(self.samples_s), [0.25, 0.5, 0.75])
        return float((high - low) / 2 / mid)


class Figures(msgspec.Struct, frozen=True):
    """All networks on one machine, at one batch size and number of threads."""

    machine: str
    runtime: str
    dtype: str
    threads: int
    batch: int
    profile: str
    profile_budget_s: float
    profile_created: str
    mismatch: tuple[str, ...]
    measured_at: str
    load: tuple[float, float]
    networks: tuple[NetworkFigures, ...]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--profile", help="name or folder; by default this machine's newest")
    parser.add_argument("--passes", type=int, default=8, help="timed passes a round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/accuracy"))
    args = parser.parse_args()
    for threads in args.threads:
        profile = find_profile(args.profile, args.device, threads)
        for batch in args.batch:
            figures = measure_all(profile, batch, args.passes, args.rounds)
            slug = f"{profile.fingerprint.slug}-batch{batch}"
            text = msgspec.json.format(msgspec.json.encode(figures), indent=1)
            write_whole(args.output / f"{slug}.json", text + b"\n")
            print(table(figures))
    write_page(args.output)


def find_profile(name: str | None, device: str, threads: int) -> Profile:
    """The profile named, or the newest of this machine at a number of threads."""
    from latmorph.latency.profile import list_profiles, mismatch, read_header

    if name is not None:
        return lm.load_profile(name)
    headers = [(read_header(folder), folder) for folder in list_profiles().values()]
    here = [
        (header.created, folder)
        for header, folder in headers
        if (of := header.fingerprint).device == device
        and (device != "cpu" or of.threads == threads)
        and not mismatch(of)
    ]
    if not here:
        raise SystemExit(f"no profile of this machine's {device} at {threads} thread(s): make one first")
    return lm.load_profile(max(here)[1])


def measure_all(profile: Profile, batch: int, passes: int, rounds: int) -> Figures:
    """Predict and measure every network."""
    device = profile.fingerprint.device
    networks: dict[str, tuple[torch.nn.Module, Sequence[torch.Tensor]]] = {}
    estimates, flops = {}, {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model, x = make().eval().to(device), torch.rand(batch, 3, 224, 224, device=device)
        graph = lm.capture(model, (x,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimates[name] = profile.predict(graph)
        flops[name] = graph.flops
        networks[name] = (model, (x,))
    taken = []
    for k in range(rounds):
        print(f"round {k + 1} of {rounds}", flush=True)
        taken.append(measure_together(networks, profile, passes=passes))
    of = profile.fingerprint
    load = os.getloadavg()
    return Figures(
        f"{of.name}, {of.cores} cores, {' '.join(of.features)}",
        f"{of.runtime}, {of.runtime_version}",
        of.dtype,
        of.threads,
        batch,
        profile.name,
        profile.header.budget_s,
        profile.header.created,
        profile.mismatch,
        datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        (load[0], load[1]),
        tuple(
            NetworkFigures(
                name,
                flops[name],
                estimates[name].total_s,
                estimates[name].interval_s,
                tuple(t[name].time_s for t in taken),
                tuple(t[name].samples_s for t in taken),
                tuple(t[name].references_s for t in taken),
            )
            for name in networks
        ),
    )


def table(figures: Figures) -> str:
    """One setting as Markdown."""
    errors = [abs(n.error) for n in figures.networks]
    threads = f", {figures.threads} thread(s)" if figures.threads else ""
    lines = [
        f"### {figures.machine}{threads}, batch {figures.batch}",
        "",
        f"{figures.runtime}, {figures.dtype}. Profile `{figures.profile}`, measured for "
        f"{figures.profile_budget_s:.0f} s on {figures.profile_created[:10]}. Networks measured "
        f"{figures.measured_at}, load average {figures.load[0]:.1f}.",
        *(f"\n**The profile is of another machine: {d}.**" for d in figures.mismatch),
        "",
        "| network | GFLOPs | predicted | 90 % interval | measured | error | rounds disagree by | spread |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for n in figures.networks:
        low, high = n.interval_s
        lines.append(
            f"| {n.name} | {n.flops / 1e9:.2f} | {time_text(n.predicted_s)} | "
            f"{time_text(low)} to {time_text(high)} | {time_text(n.measured_s)} | {100 * n.error:+.1f} % | "
            f"{100 * n.repeatability:.1f} % | {100 * n.raw_spread:.1f} % |"
        )
    lines += [
        "",
        f"Median absolute error **{100 * np.median(errors):.1f} %**, largest **{100 * max(errors):.1f} %**.",
        "",
    ]
    return "\n".join(lines)


INTRODUCTION = """# Accuracy: predicted against measured, end to end

Written by `python -m tools.accuracy`, from the JSON files in `docs/accuracy/`, which hold the raw samples.

The networks (`tools/networks.py`, random weights, 224x224) are not used in fitting any profile. All are
measured side by side: in every pass each runs once untimed and once timed, in random order, with a fixed
reference operator before and after. A round's time is the smallest sample over the smallest reference,
times the reference's time on the calm machine; "measured" is the median of the rounds. "Rounds disagree
by" is the largest over the smallest round, less one: what the machine itself does not repeat. "Spread" is
half the interquartile range of the raw samples over their median. On Linux, the allocator keeps freed memory
(`keep_freed_memory` in `latmorph/device/eager.py`), in profiles and here.

"""


def write_page(folder: Path) -> None:
    """Write the page beside ``folder`` anew from the JSONs in it."""
    parts = [
        table(msgspec.json.decode(path.read_bytes(), type=Figures)) for path in sorted(folder.glob("*.json"))
    ]
    write_whole(folder.with_suffix(".md"), (INTRODUCTION + "\n".join(parts)).encode())


if __name__ == "__main__":
    main()
