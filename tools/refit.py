"""Fit profiles anew from their own measurements, after the model has changed. Nothing is measured.

Usage: python -m tools.refit FOLDER [FOLDER ...]
"""

from __future__ import annotations

import sys

import msgspec

from latmorph._version import __version__
from latmorph.device.timing import calm_reference_s
from latmorph.latency.fit import fit
from latmorph.latency.profile import Profile, open_profile


def main() -> None:
    """Run from the command line."""
    for folder in sys.argv[1:]:
        old = open_profile(folder)
        model, validation = fit(old.model.roofs, old.visits, seed=old.header.seed)
        header = msgspec.structs.replace(
            old.header,
            validation=validation,
            latmorph=__version__,
            reference_s=calm_reference_s(old.visits),
        )
        Profile(header, model, old.visits).save(folder)
        before, after = old.header.validation, validation
        print(
            f"{folder}: median error on held-out networks {before.median_error_percent:.2f} % before, "
            f"{after.median_error_percent:.2f} % now"
        )


if __name__ == "__main__":
    main()
