"""What tests of anchoring look at: whether owners know all who hold their objects, and what a process counts."""

from __future__ import annotations

import gc

import safe_refs
from safe_refs._ray.native import core_worker


def anchored() -> bool:
    """Whether the owners know of all who hold their objects, by the registry that this process uses."""
    figures = safe_refs.stats()
    return figures is not None and figures.unanchored == 0


def counted() -> dict[str, tuple[int, int]]:
    """What this process counts: local references and those in calls under way, by object."""
    gc.collect()
    counts = core_worker().get_all_reference_counts()
    return {key.decode(): (count["local"], count["submitted"]) for key, count in counts.items()}
