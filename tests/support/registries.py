"""A registry and a session that are none: for tests of how requests get to a registry. Without Ray."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from safe_refs.config import Deadline
from safe_refs.envelope import LeaseAddress
from safe_refs.errors import LeaseReleasedError, RegistryUnavailableError, SafeRefsError
from safe_refs.registry.protocols import Layout, OneShard
from safe_refs.registry.records import Identity, Origin, Terms
from safe_refs.registry.requests import Plan, Question, Wanted

HELD = Identity(b"8 bytes.", 1)
ORIGIN = Origin("job", "node", 1, "source")


def within(seconds: float) -> Deadline:
    """A deadline, from now on."""
    return Deadline(time.monotonic() + seconds, seconds)


def plan(refs: Sequence[Any] = (), *, borrowed: bool = False) -> Plan:
    """A lease that is to begin."""
    return Plan(os.urandom(16), refs, Terms(), ORIGIN, refs if borrowed else ())


def wanted(lease: bytes, registry: str = "one") -> Wanted:
    """A lease that is to be resolved."""
    return Wanted(LeaseAddress(registry, b"cluster", b"8 bytes.", 1, lease), None, False, ORIGIN, os.urandom(8))


class FakeRegistry:
    """Holds leases, without any actor. What it is asked waits for the gate, but no longer than its deadline.

    Attributes:
        gate: as long as it isn't set, nobody is answered.
        asked: what was asked, by verb, and of how many leases.
        held: the leases, with what they hold.
        ended: leases that were released.
        fail: what the next calls raise.
        refused: leases that are not to begin, and why.
        undecided: leases that are decided only if they are asked for by themselves.
    """

    knows_layout = True
    layout: Layout = OneShard()

    def __init__(self, here: FakeSession, name: str) -> None:
        self.here, self.name = here, name
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[tuple[str, int]] = []
        self.held: dict[bytes, Sequence[Any]] = {}
        self.ended: set[bytes] = set()
        self.fail: list[BaseException] = []
        self.undecided: set[bytes] = set()
        self.refused: dict[bytes, SafeRefsError] = {}

    def verbs(self, *, start: bool, deadline: object = None) -> FakeRegistry:
        return self

    def no_answer(self, deadline: Deadline) -> RegistryUnavailableError:
        return RegistryUnavailableError(f"registry {self.name!r} did not answer within {deadline.timeout_s:g} s")

    def pause(self, deadline: Deadline) -> None:
        raise self.no_answer(deadline)

    def _call(self, verb: str, size: int, deadline: Deadline) -> None:
        self.asked.append((verb, size))
        if not self.gate.wait(deadline.left_s()):
            raise self.no_answer(deadline)
        if self.fail:
            raise self.fail.pop()

    def pin_once(self, plans: Sequence[Plan], deadline: Deadline) -> list[Identity | SafeRefsError | None]:
        self._call("pin", len(plans), deadline)
        return [self._pin(each, len(plans) == 1) for each in plans]

    def _pin(self, each: Plan, is_alone: bool) -> Identity | SafeRefsError | None:
        if each.lease in self.undecided and not is_alone:
            return None
        if each.lease in self.refused:
            return self.refused[each.lease]
        if each.lease in self.ended:
            return LeaseReleasedError.of(each.lease[:4].hex(), self.name, 0.0, "somebody")
        self.held[each.lease] = each.refs
        return HELD

    def resolve_once(self, rows: Sequence[Wanted], deadline: Deadline) -> list[list[Any] | None]:
        self._call("resolve", len(rows), deadline)
        found = [self.held.get(row.address.lease) for row in rows]
        return [None if refs is None else list(refs) for refs in found]

    def ask_once(self, question: Question[Any], deadline: Deadline) -> Any:
        self._call("resolve", 1, deadline)
        return list(self.held[question.address.lease])

    def release_once(
        self, rows: Sequence[tuple[Sequence[bytes], Origin]], ended: set[bytes], deadline: Deadline
    ) -> bool | None:
        leases = [lease for ids, _ in rows for lease in ids]
        self._call("release", len(leases), deadline)
        for lease in leases:
            if self.held.pop(lease, None) is not None:
                ended.add(lease)
            self.ended.add(lease)
        return True

    def release_later(self, leases: Iterable[bytes], maker: object = None, reason: str = "") -> None:
        for lease in leases:
            self.held.pop(lease, None)
            self.ended.add(lease)

    def forget(self) -> None:
        """There is nothing that it could look up anew."""


class FakeSession:
    """A connection to no cluster.

    Attributes:
        told: what the parts of the client were told of pins: the lease, whether it is held, and by which thread.
        refuse: what telling them raises.
    """

    parts = ()

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.sender: Any = None
        self.registries: dict[str, FakeRegistry] = {}
        self.told: list[tuple[bytes, bool, str]] = []
        self.refuse: list[Exception] = []

    def registry(self, name: str) -> FakeRegistry:
        return self.registries.setdefault(name, FakeRegistry(self, name))

    def origin(self) -> Origin:
        return ORIGIN

    def after_pins(self, registry: str, pins: Sequence[tuple[Plan, Identity | None]], deadline: Deadline) -> None:
        for each, identity in pins:
            self.told.append((each.lease, identity is not None, threading.current_thread().name))
            if identity is not None and self.refuse:
                raise self.refuse.pop()
