"""One exception tree. Every message names the input, says what is wrong and what to do."""

from __future__ import annotations


class LatmorphWarning(UserWarning):
    """Base of every warning that latmorph gives on purpose."""


class ProfileMismatchWarning(LatmorphWarning):
    """A profile of another machine stands in for one of this machine; its estimates say so too."""


class LatmorphError(Exception):
    """Base of every error that latmorph raises on purpose."""


class CaptureError(LatmorphError):
    """The model could not be turned into a graph."""


class UnknownOperatorError(CaptureError):
    """The model uses operators that latmorph has no handler for.

    ``operators`` maps each operator's name to the modules that call it.
    """

    def __init__(self, operators: dict[str, list[str]]) -> None:
        self.operators = operators
        listed = "; ".join(
            f"{name} (in {', '.join(sorted(set(where))[:3])})" for name, where in operators.items()
        )
        super().__init__(
            f"no handler for {len(operators)} operator(s): {listed}. "
            "To go on, with their channels frozen and their time left out, allow unknown operators "
            "(allow_unknown=True, or --allow-unknown)"
        )


class DeviceError(LatmorphError):
    """The device or runtime asked for is unknown or is not on this machine."""


class ProfileError(LatmorphError):
    """A profile is missing, damaged, of a newer format, or not a profile at all."""


class StructureError(LatmorphError):
    """A structure does not fit the network, or its file is damaged."""


class TargetError(LatmorphError):
    """No structure can reach the target that was asked for."""


class UsageError(LatmorphError):
    """An argument does not make sense: a model path that does not import, a bad input shape."""
