"""Structure: which channels of every group are kept, and the network that is left of a model."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from latmorph.errors import LatmorphWarning, StructureError
from latmorph.files import write_whole
from latmorph.graph.graph import Graph

if TYPE_CHECKING:
    import torch

FORMAT = "latmorph-structure"
VERSION = 1


class InputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shape and dtype of one input of the network."""

    shape: tuple[int, ...]
    dtype: str


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The kept channels of one group of ``width`` channels."""

    width: int
    kept: tuple[int, ...]


class Slice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The kept indices of one axis, of ``size`` indices, of one parameter."""

    parameter: str
    axis: int
    size: int
    kept: tuple[int, ...]


class Structure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kept channel indices of every group that is not frozen, and what that means for each parameter.

    Plain values only: :meth:`save` writes JSON and :meth:`load` reads and checks it.
    """

    format: str
    version: int
    network: str
    inputs: tuple[InputSpec, ...]
    groups: dict[str, Kept]
    slices: tuple[Slice, ...]

    @classmethod
    def keep(cls, graph: Graph, kept: Mapping[str, Sequence[int]]) -> Structure:
        """The structure that keeps these channel indices of these groups, and all of the others.

        A group that nothing is kept of takes with it the operators that have no elements left. Raises
        StructureError for a group that does not exist or is frozen, and for indices out of range or twice.
        """
        indices: dict[int, np.ndarray] = {}
        for name, given in kept.items():
            g = graph.group(name)
            group = graph.groups[g]
            chosen = np.asarray(given, dtype=np.int64).ravel()
            if group.frozen is not None and len(chosen) != group.width:
                raise StructureError(f"group {name!r} is frozen: {group.frozen}")
            if len(chosen) and (chosen.min() < 0 or chosen.max() >= group.width):
                raise StructureError(
                    f"group {name!r} has channels 0 to {group.width - 1}, "
                    f"got {int(chosen.min())} to {int(chosen.max())}"
                )
            if len(np.unique(chosen)) != len(chosen):
                raise StructureError(f"group {name!r}: an index is given twice")
            indices[g] = np.sort(chosen)
        return cls(
            FORMAT,
            VERSION,
            graph.fingerprint,
            tuple(InputSpec(graph.tensors[t].shape, graph.tensors[t].dtype) for t in graph.inputs),
            {
                graph.groups[g].name: Kept(
                    graph.groups[g].width,
                    tuple(indices.get(g, np.arange(graph.groups[g].width)).tolist()),
                )
                for g in graph.prunable
            },
            _slices(graph, indices),
        )

    @property
    def widths(self) -> dict[str, int]:
        """Channels kept in every group."""
        return {name: len(group.kept) for name, group in self.groups.items()}

    def widths_of(self, graph: Graph) -> np.ndarray:
        """Widths in the order of ``graph.groups``, int64. Raises StructureError for another network."""
        self._check_network(graph)
        widths = graph.widths.copy()
        for name, group in self.groups.items():
            widths[graph.group(name)] = len(group.kept)
        return widths

    def alive(self, graph: Graph) -> np.ndarray:
        """Which channels are kept, a mask over those of all groups of ``graph`` in order."""
        self._check_network(graph)
        masks = []
        for group in graph.groups:
            mask = np.ones(group.width, dtype=bool)
            if group.name in self.groups:
                mask[:] = False
                mask[list(self.groups[group.name].kept)] = True
            masks.append(mask)
        return np.concatenate(masks) if masks else np.zeros(0, dtype=bool)

    def _check_network(self, graph: Graph) -> None:
        if graph.fingerprint == self.network:
            return
        free = {graph.groups[g].name: graph.groups[g].width for g in graph.prunable}
        difference = "parameters or frozen groups differ"
        for name in dict.fromkeys((*self.groups, *free)):
            own = self.groups[name].width if name in self.groups else None
            if own != free.get(name):
                has, wants = (
                    "no such group that can shrink" if width is None else f"{width} channels in it"
                    for width in (free.get(name), own)
                )
                difference = f"group {name!r}: the model has {has}, the structure {wants}"
                break
        raise StructureError(
            f"the structure is of network {self.network}, not of {graph.fingerprint} ({difference}): "
            "apply it to the model that it was learned on"
        )

    def save(self, path: str | Path) -> None:
        """Write the structure as JSON, whole or not at all."""
        write_whole(Path(path), msgspec.json.format(msgspec.json.encode(self), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Structure:
        """Read what :meth:`save` wrote. Raises StructureError, with what is wrong, for anything else."""
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StructureError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            head = msgspec.json.decode(data)
            if not isinstance(head, dict) or head.get("format") != FORMAT:
                raise StructureError(f"{path}: not a latmorph structure")
            if isinstance(head.get("version"), int) and head["version"] > VERSION:
                raise StructureError(
                    f"{path}: format version {head['version']} is newer than {VERSION}; update latmorph"
                )
            structure = msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise StructureError(f"{path}: damaged ({error})") from None
        structure._validate(path)
        return structure

    def _validate(self, path: Path) -> None:
        def check(what: str, size: int, kept: tuple[int, ...]) -> None:
            ascending = all(a < b for a, b in itertools.pairwise(kept))
            if not ascending or (kept and (kept[0] < 0 or kept[-1] >= size)):
                raise StructureError(f"{path}: damaged (kept indices of {what} are not in 0..{size - 1})")

        for name, group in self.groups.items():
            check(f"group {name!r}", group.width, group.kept)
        for part in self.slices:
            check(f"{part.parameter!r}", part.size, part.kept)
            if part.axis < 0:
                raise StructureError(f"{path}: damaged (axis {part.axis} of {part.parameter!r})")


def _slices(graph: Graph, indices: dict[int, np.ndarray]) -> tuple[Slice, ...]:
    sizes = {t.parameter: t.shape for t in graph.tensors if t.parameter is not None}
    alive: dict[tuple[str, int], np.ndarray] = {}
    for g, kept in sorted(indices.items()):
        group = graph.groups[g]
        if len(kept) == group.width:
            continue
        removed = np.setdiff1d(np.arange(group.width), kept)
        for member in group.members:
            key = (member.parameter, member.axis)
            mask = alive.setdefault(key, np.ones(sizes[member.parameter][member.axis], dtype=bool))
            mask[member.indices[removed].ravel()] = False
    return tuple(
        Slice(name, axis, len(mask), tuple(np.flatnonzero(mask).tolist()))
        for (name, axis), mask in alive.items()
    )


def shrink(
    model: torch.nn.Module,
    structure: Structure,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    weights: bool = True,
) -> torch.nn.Module:
    """A copy of ``model`` without the channels that ``structure`` leaves out, weights kept.

    The same classes where the model's own code runs at the new sizes, which is checked operator by operator;
    otherwise a module written from the graph, with torch's layers under their old names. An ``optimizer`` of
    the model's becomes one of the smaller network's, with what is left of its state. Without ``weights``
    every layer is initialised as layers of its class initialise themselves, to be trained from scratch.

    The outputs stay the same where the removed channels contribute nothing (as after training with
    :meth:`latmorph.Regularizer.attach`), or the same whatever the inputs are, which goes into the biases of
    what reads them. By how much they move otherwise is measured, on inputs of noise, and a LatmorphWarning
    says so.

    Raises StructureError when the structure is another model's, with the first difference, and when a group
    at zero cuts the network in two.
    """
    from latmorph.graph.capture import export, read
    from latmorph.graph.cut import Cut
    from latmorph.graph.fold import folded
    from latmorph.graph.rebuild import example, follow, reset, shrunk

    _check_slices(model, structure)
    device = next((p.device for p in model.parameters()), "cpu")
    found = read(export(model, tuple(example(i.shape, i.dtype, device) for i in structure.inputs)), True)
    alive = structure.alive(found.graph)
    if (
        structure.slices
        != Structure.keep(found.graph, {n: g.kept for n, g in structure.groups.items()}).slices
    ):
        raise StructureError("the structure is damaged: its slices are not those of its groups")
    cut = Cut(found.graph, alive)
    if weights:
        small = shrunk(folded(model, found, cut), found, cut)
        _say_how_far(model, small, structure.inputs)
    else:
        fresh = copy.deepcopy(model)
        reset(fresh)  # for constants that are worked out
        small = shrunk(fresh, found, cut)
        reset(small)
    if optimizer is not None:
        follow(optimizer, model, small, found.graph, cut)
    return small


def _say_how_far(model: torch.nn.Module, small: torch.nn.Module, inputs: Sequence[InputSpec]) -> None:
    """Warn if outputs of the smaller network differ from the model's by more than rounding."""
    import torch

    from latmorph.graph.capture import holds_numbers, untouched

    if not holds_numbers(model):
        return
    device = next((p.device for p in model.parameters()), "cpu")
    found: list[list[torch.Tensor]] = []
    for network in (model, small):
        with untouched(network):
            torch.manual_seed(0)
            given = (torch.empty(i.shape, dtype=getattr(torch, i.dtype), device=device) for i in inputs)
            noise = [x.normal_() if x.is_floating_point() else x.zero_() for x in given]
            made = torch.utils._pytree.tree_leaves(network(*noise))
            found.append([x for x in made if isinstance(x, torch.Tensor) and x.is_floating_point()])
    moved = 0.0
    for old, new in zip(*found, strict=True):
        size = float(torch.where(old.isfinite(), old.abs(), 0.0).max()) if old.numel() else 0.0
        apart = float(torch.where(old == new, 0.0, (old - new).abs()).max()) if old.numel() else 0.0
        if apart > size * torch.finfo(old.dtype).eps ** 0.5:
            moved = max(moved, apart / size if size else float("inf"))
    if moved:
        warnings.warn(
            f"the smaller network's outputs differ from the model's by up to {moved:.2g} of the largest, on "
            "inputs of noise: what is removed was not zero, nor a constant that could go into biases; "
            "training on may mend that",
            LatmorphWarning,
            stacklevel=3,
        )


def _check_slices(model: torch.nn.Module, structure: Structure) -> None:
    from latmorph.graph.capture import named_tensors

    held = named_tensors(model)
    for part in structure.slices:
        tensor = held.get(part.parameter)
        if tensor is None or part.axis >= tensor.ndim or tensor.shape[part.axis] != part.size:
            has = "no such parameter" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise StructureError(
                f"the structure expects {part.parameter!r} with {part.size} indices along axis "
                f"{part.axis}, the model has {has}: it is another model's, or this one is shrunk already"
            )
