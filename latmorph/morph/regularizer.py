"""Regularizer: MorphNet's sparsifying term with any cost, classic or proximal, with or without a target."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from latmorph.errors import LatmorphWarning, StructureError, TargetError, UsageError
from latmorph.graph.capture import capture
from latmorph.graph.graph import Graph
from latmorph.graph.simplify import nodes_left
from latmorph.morph.controller import Controller
from latmorph.morph.cost import CostModel
from latmorph.morph.importance import Channels, paths_of, readers_to_silence
from latmorph.morph.structure import Structure

DEAD = 1e-2
"""In classic mode, a channel below this importance counts as removed, but for those that must be left."""

ROUNDING = 1 + 1e-9
"""What sums of costs in another order may differ by."""

FASTEST_DEATHS = 0.02
"""In target mode, at most this share of all channels dies in one step, the least important first."""

FASTEST_SHRINK = 4.0
"""In target mode, a fresh channel takes at least a fourth of the schedule's steps to die."""


class Regularizer:
    """Prices every channel of ``model`` by what it costs, and shrinks those not worth it while training.

    Args:
        model: the network that is being trained; parameters are read and (in proximal mode) shrunk.
        inputs: example inputs of ``forward``, whose shapes the cost is evaluated at.
        cost: a :class:`CostModel`: ``LatencyCost(profile)``, ``FlopCost()``, ``ParameterCost()``.
        strength: weight of the term, given by hand; or
        target: the wanted cost as a fraction of the parent's, in (0, 1): a controller sets the strength.
        steps: optimiser steps over which ``target`` is to be reached.
        every: steps between two looks at the cost (and, when widths changed, at the prices).
        least: how many channels at least are left of every group, or of groups by their names (of the others
            one). A group that may come to zero takes its operators with it: a block leaves its shortcut, a
            branch its concatenation. One that the network cannot do without keeps a channel all the same.

    The term is ``strength * sum_g price_g * sum_c importance_gc``: the price of a group is the marginal
    cost of its channels over the parent's cost, importance is relative (1 for a fresh channel), so the
    sum is about the fraction of the parent's cost that is still in use. The form is that of MorphNet
    (Gordon et al., 2018, eq. 8), with the marginal cost in place of the FLOP count.

    Add :meth:`loss` to the task's loss, or call :meth:`attach` once: then every ``optimizer.step()`` is
    followed by the proximal step of the same term, which makes scale and shift exactly zero together.

    Raises UsageError when both or neither of ``strength`` and ``target`` are given, when ``least`` is
    negative, or when no channel of the model can be removed; StructureError when ``least`` names a group
    that does not exist; TargetError when the target cannot be reached.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: Sequence[Any],
        cost: CostModel,
        *,
        strength: float | None = None,
        target: float | None = None,
        steps: int = 1000,
        every: int = 10,
        least: int | Mapping[str, int] = 1,
    ) -> None:
        if (strength is None) == (target is None):
            raise UsageError("give either strength= or target=, one of the two")
        if strength is not None and strength < 0:
            raise UsageError(f"strength must not be negative, got {strength}")
        if target is not None and not 0 < target < 1:
            raise UsageError(f"target is a fraction of the model's cost, between 0 and 1, got {target}")
        if steps < 1 or every < 1:
            raise UsageError(f"steps and every must be at least 1, got {steps} and {every}")
        self.graph = capture(model, inputs)
        self.cost = cost
        self.parent_cost = cost.total(self.graph)
        if not self.graph.prunable:
            reasons = "; ".join(f"{g.name}: {g.frozen}" for g in self.graph.groups[:5])
            raise UsageError(f"no channel of {type(model).__name__} can be removed ({reasons})")
        parameters: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._channels: dict[int, Channels] = {}
        for g in self.graph.prunable:
            paths = paths_of(self.graph, self.graph.groups[g])
            if paths:
                width = self.graph.groups[g].width
                self._channels[g] = Channels(paths, parameters, width, readers_to_silence(self.graph, g))
        self.alive: dict[int, torch.Tensor] = {
            g: torch.ones(c.width, dtype=torch.bool, device=c.parts[0][0].tensor.device)
            for g, c in self._channels.items()
        }
        self._least = _least_widths(self.graph, least)
        self.step_count = 0
        self.every = every
        self._fixed_strength = strength
        self._steps = steps
        self._target = target
        self._controller: Controller | None = None
        self._attached = False
        self._widths = self.graph.widths.copy()
        self._fraction = 1.0
        self._reprice()
        if target is not None:
            smallest = self._smallest()
            floor = cost.total(self.graph, smallest) / self.parent_cost
            if floor > target:
                raise TargetError(
                    f"{cost.name}: with as few channels left in every group as may be the network still "
                    f"costs {floor:.3f} of the parent, above the target of {target:g}; what is left does not "
                    "depend on channels"
                )

    @property
    def strength(self) -> float:
        """The present weight of the term."""
        if self._fixed_strength is not None:
            return self._fixed_strength
        return self._controller.strength if self._controller is not None else 0.0

    @property
    def fraction(self) -> float:
        """Cost of the channels still alive, as a fraction of the parent's."""
        return self._fraction

    def loss(self) -> torch.Tensor:
        """The classic term, a scalar to be added to the task's loss; call it once a step."""
        if not self._attached:
            self._begin(lr=None)
            self._tick()
        terms = [
            float(self.prices[g]) * channels.importance().sum()
            for g, channels in self._channels.items()
            if self.prices[g] > 0
        ]
        return self.strength * torch.stack(terms).sum() if terms else torch.zeros(())

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow every ``optimizer.step()`` by the proximal step of the term. Nothing else to call.

        Raises UsageError when the optimizer does not hold the model's parameters, or on a second call.
        """
        if self._attached:
            raise UsageError("the regularizer is attached already")
        wanted: dict[int, set[int]] = {}  # a norm behind a concatenation belongs to several groups
        for g, channels in self._channels.items():
            for part in itertools.chain.from_iterable(channels.parts):
                wanted.setdefault(id(part.tensor), set()).add(g)
        self._lr_group: dict[int, dict[str, Any]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for g in wanted.get(id(parameter), ()):
                    self._lr_group.setdefault(g, group)
        missing = [self.graph.groups[g].name for g in self._channels if g not in self._lr_group]
        if missing:
            raise UsageError(
                f"the optimizer does not hold the parameters of {', '.join(missing[:3])}: attach the one "
                "that trains the model"
            )
        self._attached = True
        optimizer.register_step_post_hook(lambda *_: self._proximal_step())

    def _begin(self, lr: float | None) -> None:
        """Set the first strength: in proximal mode, the one that alone would spend all steps on a kill."""
        if self._target is None or self._controller is not None:
            return
        counts = {g: c.width for g, c in self._channels.items()}
        mean_price = sum(self.prices[g] * n for g, n in counts.items()) / sum(counts.values())
        first = 0.05 if lr is None else 1.0 / max(lr * mean_price * self._steps, 1e-30)
        self._controller = Controller(self._target, self._steps, first)

    def _tick(self) -> None:
        self.step_count += 1
        if self.step_count % self.every == 0:
            self._look()
            if self._controller is not None:
                self._controller.update(self.step_count, self._fraction)

    def _look(self) -> None:
        """Take the widths as they are now, with their cost and prices."""
        if not self._attached:
            self.alive = self._important()
        widths = self._alive_widths()
        if not np.array_equal(widths, self._widths):
            self._widths = widths
            self._fraction = self.cost.total(self.graph, widths) / self.parent_cost
            self._reprice()

    def _alive_widths(self) -> np.ndarray:
        widths = self.graph.widths.copy()
        counts = torch.stack([mask.sum() for mask in self.alive.values()]).tolist()
        widths[list(self.alive)] = counts
        return widths

    @torch.no_grad()
    def _important(self) -> dict[int, torch.Tensor]:
        """The channels that are not dead in classic mode, and as many more as must be left."""
        found: dict[int, torch.Tensor] = {}
        widths = self.graph.widths.copy()
        for g, channels in self._channels.items():
            importance = channels.importance()
            count = int((importance >= DEAD).sum())
            widths[g] = max(count, int(self._least[g]))
            if widths[g] == 0 and not self._can_do_with(widths):
                widths[g] = 1
            found[g] = torch.zeros(channels.width, dtype=torch.bool, device=importance.device)
            found[g][importance.argsort(descending=True)[: int(widths[g])]] = True
        return found

    def _smallest(self) -> np.ndarray:
        """Widths with as few channels in every group as may be."""
        widths = self.graph.widths.copy()
        for g in self._channels:
            widths[g] = self._least[g]
            if widths[g] == 0 and not self._can_do_with(widths):
                widths[g] = 1
        return widths

    def _can_do_with(self, widths: np.ndarray) -> bool:
        """Whether the groups that are at zero can be."""
        try:
            nodes_left(self.graph, frozenset(np.flatnonzero(widths == 0).tolist()))
        except StructureError:
            return False
        return True

    def _reprice(self) -> None:
        self.prices = self.cost.marginal(self.graph, self._widths, self._least) / self.parent_cost

    @torch.no_grad()
    def _proximal_step(self) -> None:
        first = next(iter(self._lr_group.values()))
        self._begin(float(first["lr"]))
        self._tick()
        behind = self._controller is None or self._fraction > self._controller.wanted(self.step_count)
        doomed: list[tuple[float, int, int]] = []
        for g, channels in self._channels.items():
            alive = self.alive[g]
            factor = alive.to(torch.float32)
            threshold = self._threshold(g) if behind else 0.0
            if threshold > 0:
                importance = channels.importance().to(torch.float32)
                shrunk = factor * (1 - threshold / importance.clamp_min(1e-30))
                gone = alive & (shrunk <= 0)
                # Whether a channel dies is decided below, for all groups at once; until then it stays.
                factor = torch.where(gone, factor, shrunk.clamp_min(0.0))
                doomed += self._doomed(g, gone, importance)
            elif bool(alive.all()):
                continue
            channels.multiply(factor)
            channels.silence(~alive)
        if doomed:
            self._let_die(doomed)
        if self._controller is not None and self.step_count >= self._steps:
            self._finish(self._controller.target)

    def _threshold(self, g: int) -> float:
        """What the proximal step takes off the importance of a group's channels.

        With a target it is bounded, so that no channel dies faster than training can speak up for it.
        """
        threshold = float(self._lr_group[g]["lr"]) * self.strength * float(self.prices[g])
        if self._target is not None:
            threshold = min(threshold, FASTEST_SHRINK / self._steps)
        return threshold

    def _doomed(self, g: int, gone: torch.Tensor, importance: torch.Tensor) -> list[tuple[float, int, int]]:
        """Importance for the price, group and index of channels at zero, without those that must be left."""
        found = gone.nonzero().ravel().tolist()
        most = int(self.alive[g].sum()) - int(self._least[g])
        if not found or most <= 0:
            return []
        if len(found) > most:
            found = sorted(found, key=importance.tolist().__getitem__)[:most]
        price = max(float(self.prices[g]), 1e-30)
        return [(value / price, g, c) for value, c in zip(importance[found].tolist(), found, strict=True)]

    def _let_die(self, doomed: list[tuple[float, int, int]]) -> None:
        """Of the channels that are at zero, remove those that the schedule has room for, cheapest first."""
        doomed = self._spared(sorted(doomed), self._alive_widths())
        if self._controller is not None:
            total = sum(c.width for c in self._channels.values())
            doomed = doomed[: max(1, int(FASTEST_DEATHS * total))]
            wanted = self._controller.wanted(self.step_count)
            needed, self._fraction = self._needed(doomed, self._alive_widths(), self._fraction, wanted)
            doomed = doomed[:needed]
        for g in {g for _, g, _ in doomed}:
            mask = self.alive[g]
            mask[[c for _, own, c in doomed if own == g]] = False
            self._keep(g, mask)

    def _spared(
        self, doomed: Sequence[tuple[float, int, int]], widths: np.ndarray
    ) -> list[tuple[float, int, int]]:
        """The channels of an ordered list that can go from ``widths``: groups that are needed keep one."""
        left, found = widths.copy(), []
        for removal in doomed:
            g = removal[1]
            left[g] -= 1
            if left[g] == 0 and not self._can_do_with(left):
                left[g] = 1
            else:
                found.append(removal)
        return found

    def _keep(self, g: int, mask: torch.Tensor) -> None:
        """Of a group's channels only those of the mask stay alive; the others are zero from now on."""
        self.alive[g] = mask
        self._channels[g].multiply(mask.to(torch.float32))
        self._channels[g].silence(~mask)

    def _needed(
        self,
        removals: Sequence[tuple[float, int, int]],
        widths: np.ndarray,
        fraction: float,
        wanted: float,
    ) -> tuple[int, float]:
        """How many of the first removals bring the cost to ``wanted`` (else all), and to what fraction.

        ``fraction`` is the cost at ``widths``, over the parent's. A few numbers are tried, spread over
        the list, in one evaluation of the cost.
        """
        ends = np.unique(np.linspace(1, len(removals), 6).astype(int))
        tried = np.repeat(widths[None], len(ends), axis=0)
        for row, end in zip(tried, ends, strict=True):
            np.subtract.at(row, [g for _, g, _ in removals[:end]], 1)
        fractions = fraction + self.cost.change(self.graph, widths, tried) / self.parent_cost
        enough = np.flatnonzero(fractions <= wanted)
        chosen = int(enough[0]) if len(enough) else len(ends) - 1
        return int(ends[chosen]), float(fractions[chosen])

    def _finish(self, target: float) -> None:
        """The schedule is over: what still lies above the target goes now, and training mends the rest."""
        if self._fraction <= target * ROUNDING:
            return
        for g, mask in self._select(target).items():
            self._keep(g, torch.as_tensor(mask, device=self.alive[g].device))
        self._fraction = self.cost.total(self.graph, self._alive_widths()) / self.parent_cost

    def structure(self) -> Structure:
        """The channels that are still alive, brought under the target if there is one. Changes nothing.

        After :meth:`attach` and a schedule's ``steps``, channels are alive or exactly zero, and the target
        is met: the shrunk network computes what the trained one does. Before that, the least important
        channels for their price are left out as well; that changes the outputs, and a warning says so.
        Raises TargetError when the structure would cost more than its parent.
        """
        self._look()
        alive = {g: mask.cpu().numpy() for g, mask in self.alive.items()}
        if self._target is not None and self._fraction > self._target * ROUNDING:
            chosen = self._select(self._target)
            more = sum(int(mask.sum() - chosen[g].sum()) for g, mask in alive.items())
            warnings.warn(
                f"training has brought {self.cost.name} to {self._fraction:.3f} of the parent, the target is "
                f"{self._target:g}: {more} channels that are not zero are left out as well, and the outputs "
                f"change; train for at least steps={self._steps} steps, or on after shrinking",
                LatmorphWarning,
                stacklevel=2,
            )
            alive = chosen
        kept = {self.graph.groups[g].name: np.flatnonzero(mask).tolist() for g, mask in alive.items()}
        structure = Structure.keep(self.graph, kept)
        cost = self.cost.total(self.graph, structure.widths_of(self.graph)) / self.parent_cost
        if cost > ROUNDING:
            raise TargetError(
                f"{self.cost.name}: the channels left cost {cost:.3f} of the parent, more than all of them: "
                "on this device fewer channels are slower here; train on, or give a target"
            )
        return structure

    @torch.no_grad()
    def _select(self, target: float) -> dict[int, np.ndarray]:
        """The channels left when the least important for their price go until the target is met."""
        alive = {g: mask.cpu().numpy().copy() for g, mask in self.alive.items()}
        importance = {g: c.importance().float().cpu().numpy() for g, c in self._channels.items()}
        widths = self._alive_widths()
        fraction = self.cost.total(self.graph, widths) / self.parent_cost
        while fraction > target * ROUNDING:
            prices = self.cost.marginal(self.graph, widths, self._least)
            prices = np.maximum(prices, 1e-12 * self.parent_cost)
            candidates = sorted(
                (importance[g][c] / prices[g], g, int(c))
                for g, mask in alive.items()
                for c in sorted(np.flatnonzero(mask), key=lambda c: importance[g][c])[
                    : max(0, int(widths[g] - self._least[g]))
                ]
            )
            candidates = self._spared(candidates, widths)
            if not candidates:
                raise TargetError(f"{self.cost.name}: the target {target:g} cannot be reached")
            # Prices change as channels go: a few at a time.
            few = candidates[: max(1, len(candidates) // 50)]
            needed, fraction = self._needed(few, widths, fraction, target)
            for _, g, c in few[:needed]:
                alive[g][c] = False
                widths[g] -= 1
        return alive


def _least_widths(graph: Graph, least: int | Mapping[str, int]) -> np.ndarray:
    """How many channels of every group must be left, int64 of shape ``(groups,)``."""
    given = least if isinstance(least, Mapping) else {graph.groups[g].name: least for g in graph.prunable}
    widths = np.ones(len(graph.groups), dtype=np.int64)
    for name, width in given.items():
        if width < 0:
            raise UsageError(f"least must not be negative, got {width} for group {name!r}")
        widths[graph.group(name)] = width
    return np.asarray(np.minimum(widths, graph.widths))
