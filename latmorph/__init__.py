"""latmorph: networks that are fast on the device they will really run on.

Profile a device, price every channel by the latency it costs, learn a structure, rebuild it smaller.
Names are imported when first used, so that ``import latmorph`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latmorph._version import __version__

if TYPE_CHECKING:
    from latmorph.errors import (
        CaptureError,
        DeviceError,
        LatmorphError,
        LatmorphWarning,
        ProfileError,
        ProfileMismatchWarning,
        StructureError,
        TargetError,
        UnknownOperatorError,
        UsageError,
    )
    from latmorph.graph.capture import capture
    from latmorph.graph.graph import ChannelGroup, Graph, Member
    from latmorph.latency.estimate import Estimate
    from latmorph.latency.profile import Profile, load_profile
    from latmorph.morph.cliffs import Cliff, find_cliffs
    from latmorph.morph.cost import CostModel, FlopCost, LatencyCost, ParameterCost
    from latmorph.morph.expand import expand
    from latmorph.morph.focus import focus
    from latmorph.morph.regularizer import Regularizer
    from latmorph.morph.structure import Structure, shrink
    from latmorph.report.measured import measure

_HOME = {
    "capture": "graph.capture",
    "ChannelGroup": "graph.graph",
    "Graph": "graph.graph",
    "Member": "graph.graph",
    "Estimate": "latency.estimate",
    "Profile": "latency.profile",
    "load_profile": "latency.profile",
    "measure": "report.measured",
    "Cliff": "morph.cliffs",
    "find_cliffs": "morph.cliffs",
    "CostModel": "morph.cost",
    "FlopCost": "morph.cost",
    "LatencyCost": "morph.cost",
    "ParameterCost": "morph.cost",
    "expand": "morph.expand",
    "focus": "morph.focus",
    "Regularizer": "morph.regularizer",
    "Structure": "morph.structure",
    "shrink": "morph.structure",
    "LatmorphError": "errors",
    "LatmorphWarning": "errors",
    "CaptureError": "errors",
    "UnknownOperatorError": "errors",
    "DeviceError": "errors",
    "ProfileError": "errors",
    "ProfileMismatchWarning": "errors",
    "StructureError": "errors",
    "TargetError": "errors",
    "UsageError": "errors",
}

__all__ = [
    "CaptureError",
    "ChannelGroup",
    "Cliff",
    "CostModel",
    "DeviceError",
    "Estimate",
    "FlopCost",
    "Graph",
    "LatencyCost",
    "LatmorphError",
    "LatmorphWarning",
    "Member",
    "ParameterCost",
    "Profile",
    "ProfileError",
    "ProfileMismatchWarning",
    "Regularizer",
    "Structure",
    "StructureError",
    "TargetError",
    "UnknownOperatorError",
    "UsageError",
    "__version__",
    "capture",
    "expand",
    "find_cliffs",
    "focus",
    "load_profile",
    "measure",
    "shrink",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'latmorph' has no attribute {name!r}")
    value = getattr(import_module(f"latmorph.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
