"""Processes on which leases hang, and their end: letting go of references early enough for Ray to tell the owners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def note(refs: Sequence[Any]) -> None:
    """Leases of these references hang on this process."""
