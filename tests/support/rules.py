"""A lease table without Ray: its clock is the test's."""

from __future__ import annotations

from safe_refs.config import Limits
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Identity, Origin, Terms

EPOCH = b"epoch..1"
STARTED = Identity(EPOCH, 3)
ME = Origin("01000000", "ab" * 28, 4711, "app.py:12 in main")
A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_table(clock: Clock, limits: Limits | None = None, *, alone: bool = True) -> LeaseTable[str]:
    return LeaseTable(
        registry="default", identity=STARTED, clock=clock, wall=lambda: clock.now + 1e9, limits=limits, alone=alone
    )


def pin(table: LeaseTable[str], lease: bytes, *items: str, owner: bytes = b"o", **terms: object) -> None:
    table.pin(lease, items, [owner] * len(items), Terms(**terms), ME)  # type: ignore[arg-type] # as the test gives them


def resolve(table: LeaseTable[str], lease: bytes, slot: int | None = None, *, take: bool = False) -> tuple[str, ...]:
    return table.resolve(lease, STARTED, slot=slot, take=take, origin=ME)
