"""An object that can't be opened, as long as a test says so: as where a module of it is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

import safe_refs


class Faulty:
    """Opens as the list of its references."""

    def __init__(self, *refs: Any) -> None:
        self.refs = list(refs)

    def __reduce__(self) -> Any:
        return opened, (self.refs,)


_faults: list[Callable[[], None]] = []  # the one of the test


@contextmanager
def faulty(fault: Callable[[], None] | None = None) -> Iterator[None]:
    """Within the block, no `Faulty` can be opened: whoever tries gets what this raises, or a `ModuleNotFoundError`."""
    _faults.append(fault or _missing)
    try:
        yield
    finally:
        _faults.clear()


def opened(refs: list[Any]) -> list[Any]:
    """What opening a `Faulty` calls."""
    for fault in _faults:
        fault()
    return refs


def _missing() -> None:
    raise ModuleNotFoundError("No module named 'theirs'", name="theirs")


class Unable:
    """A reader in a process of its own, where no `Faulty` can be opened."""

    def take(self, payload: bytes) -> str:
        with faulty():
            try:
                safe_refs.loads(payload, take=True)
            except ModuleNotFoundError as error:
                return str(error)
        return "opened"


def payload(*values: Any, **terms: Any) -> bytes:
    """A payload of a `Faulty` with new objects."""
    return safe_refs.dumps(Faulty(*map(ray.put, values)), **terms)


def live() -> int:
    """How many leases there are."""
    found = safe_refs.stats()
    return 0 if found is None else found.live_leases
