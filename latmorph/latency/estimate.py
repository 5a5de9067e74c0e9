"""Estimate: what a network is predicted to take, in total and operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from latmorph import ops
from latmorph.latency.model import Prediction, Predictor
from latmorph.latency.roofline import places
from latmorph.opspec import OpSpec, Step


class NodeLike(Protocol):
    """A captured operator, as far as an estimate needs it."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def spec(self) -> OpSpec: ...


class TensorLike(Protocol):
    """A tensor of a captured network."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class GraphLike(Protocol):
    """A captured network, as far as an estimate needs it; ``onnx`` is the file that it was read from."""

    @property
    def nodes(self) -> Sequence[NodeLike]: ...
    @property
    def tensors(self) -> Sequence[TensorLike]: ...
    @property
    def inputs(self) -> Sequence[int]: ...
    @property
    def widths(self) -> np.ndarray: ...
    @property
    def onnx(self) -> Path | None: ...
    def steps_at(self, widths: np.ndarray) -> tuple[Step, ...]:
        """The network at some widths, as steps that a backend can run."""
        ...


@dataclass(frozen=True)
class Operator:
    """One operator that a runtime makes of a captured network's, and the module that it came from."""

    name: str
    module: str
    spec: OpSpec


@dataclass(frozen=True)
class OpEstimate:
    """Predicted seconds of one operator; ``total_s = overhead_s + smoothmax(compute_s, memory_s)``.

    ``interval_s`` is the 90 % prediction interval of ``total_s``.
    """

    name: str
    module: str
    kind: str
    flops: int
    compute_s: float
    memory_s: float
    overhead_s: float
    total_s: float
    interval_s: tuple[float, float]

    @property
    def bound(self) -> str:
        """Which term is the largest: ``compute``, ``memory`` or ``overhead``."""
        terms = {
            "compute": self.compute_s,
            "memory": self.memory_s,
            "overhead": self.overhead_s,
        }
        return max(terms, key=lambda key: terms[key])


@dataclass(frozen=True)
class Estimate:
    """Predicted latency of a network on a profile's device.

    ``total_s`` is the sum of the operators and of ``overhead_s``, which a pass costs beside them;
    ``interval_s`` is its 90 % prediction interval. ``unpriced`` names operators that have no
    handler and are not in the total; ``unmeasured`` names kinds that the profile never timed, priced by
    the plain roofline. ``notes`` says in words what makes the figure less certain.
    """

    total_s: float
    interval_s: tuple[float, float]
    ops: tuple[OpEstimate, ...]
    unpriced: tuple[str, ...]
    unmeasured: tuple[str, ...]
    notes: tuple[str, ...]
    overhead_s: float = 0.0


def total_sigma(prediction: Prediction, sigma: float) -> np.ndarray:
    """Standard deviation of the log of a network's total, of shape ``(variants,)``.

    ``sigma`` is what whole networks showed; operators far from the data, or never measured, add theirs
    in proportion to their share, all taken to err the same way.
    """
    share = prediction.total_s / np.nansum(prediction.total_s, axis=0)
    excess = np.where(prediction.measured[:, None], 0.0, prediction.sigma)
    far = np.nansum(share * excess, axis=0)
    spread = np.sqrt(np.nansum((share * np.nan_to_num(prediction.sigma)) ** 2, axis=0))
    return np.asarray(np.maximum(sigma, spread) + far)


def estimate(predictor: Predictor, nodes: Sequence[NodeLike], notes: Sequence[str] = ()) -> Estimate:
    """Predict a network of these operators."""
    specs = [node.spec for node in nodes]
    prediction = predictor(specs, places(predictor.model.roofs, specs))
    overhead = predictor.model.overhead_s
    total = float(np.nansum(prediction.total_s)) + overhead
    sigma = float(total_sigma(prediction, predictor.model.sigma)[0])
    known = [ops.is_known(spec) for spec in specs]
    rows = tuple(
        OpEstimate(
            node.name,
            node.module,
            node.spec.kind,
            int(ops.flops(node.spec)),
            float(prediction.compute_s[i, 0]),
            float(prediction.memory_s[i, 0]),
            float(prediction.overhead_s[i, 0]),
            float(prediction.total_s[i, 0]),
            _interval(float(prediction.total_s[i, 0]), float(prediction.sigma[i, 0])),
        )
        for i, node in enumerate(nodes)
        if known[i]
    )
    unpriced = tuple(
        sorted({s.kind.removeprefix(ops.UNKNOWN) for s, k in zip(specs, known, strict=True) if not k})
    )
    unmeasured = tuple(
        sorted({s.kind for s, k, m in zip(specs, known, prediction.measured, strict=True) if k and not m})
    )
    words = list(notes)
    if unpriced:
        words.append(f"not in the total, because they have no handler: {', '.join(unpriced)}")
    if unmeasured:
        words.append(f"never timed by this profile, priced by the roofline: {', '.join(unmeasured)}")
    return Estimate(total, _interval(total, sigma), rows, unpriced, unmeasured, tuple(words), overhead)


def _interval(time_s: float, sigma: float) -> tuple[float, float]:
    """The central 90 % of a log-normal time, in seconds, of a log with standard deviation ``sigma``."""
    factor = float(np.exp(1.645 * sigma))
    return time_s / factor, time_s * factor
