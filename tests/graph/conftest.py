"""Seeds that are new in every run, and printed, so that a failure can be run again."""

from __future__ import annotations

import secrets

import pytest


@pytest.fixture
def fresh_seed() -> int:
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    return seed
