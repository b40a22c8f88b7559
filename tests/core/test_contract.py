"""The same contract, asked of the pure rules, of a registry made of the core alone, of the real one, and of two replicas."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

import safe_refs
from safe_refs import assembly
from safe_refs._settings import deadline as deadline_of
from safe_refs.config import Deadline
from safe_refs.envelope import LeaseAddress
from safe_refs.registry import verbs, whole
from safe_refs.registry.listing import page
from safe_refs.registry.records import Query, Terms
from safe_refs.registry.requests import Plan
from safe_refs.registry.sessions import Session
from tests.support import core_alone
from tests.support.rules import ME, STARTED, Clock, make_table


def deadline() -> Deadline:
    return deadline_of(30)


class Subject(Protocol):
    """A registry, as the contract sees it: items are texts."""

    def pin(self, lease: bytes, items: list[str], **terms: Any) -> None: ...
    def resolve(self, lease: bytes, slot: int | None = None, *, take: bool = False) -> list[str]: ...
    def release(self, lease: bytes) -> int: ...
    def renew(self, lease: bytes, ttl: float | None) -> None: ...
    def expires_in_s(self, lease: bytes) -> float | None: ...
    def labels(self) -> list[str | None]: ...
    def wait(self, seconds: float) -> None: ...


class Rules:
    """The pure table; its time passes when the test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.table = make_table(self.clock)

    def pin(self, lease: bytes, items: list[str], **terms: Any) -> None:
        self.table.pin(lease, items, [b"owner"] * len(items), Terms(**terms), ME)

    def resolve(self, lease: bytes, slot: int | None = None, *, take: bool = False) -> list[str]:
        return list(self.table.resolve(lease, STARTED, slot=slot, take=take, origin=ME))

    def release(self, lease: bytes) -> int:
        return self.table.release(lease, ME)

    def renew(self, lease: bytes, ttl: float | None) -> None:
        self.table.renew(lease, STARTED, ttl)

    def expires_in_s(self, lease: bytes) -> float | None:
        return self.table.expires_in_s(lease, STARTED)

    def labels(self) -> list[str | None]:
        self.table.expire()
        return [info.label for info in page(self.table, Query()).infos]

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds


class Actor:
    """A registry on the tests' Ray, asked by a session; its time is everybody's."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self.session = session
        self.registry = session.registry(name)
        self.identity = self.registry.identify(deadline())

    def address(self, lease: bytes) -> LeaseAddress:
        return LeaseAddress(
            self.name, self.session.connection.cluster, self.identity.epoch, self.identity.generation, lease
        )

    def pin(self, lease: bytes, items: list[str], **terms: Any) -> None:
        import ray

        plan = Plan(lease, [ray.put(item) for item in items], Terms(**terms), self.session.origin())
        self.session.sender.pin(self.name, plan, deadline())

    def resolve(self, lease: bytes, slot: int | None = None, *, take: bool = False) -> list[str]:
        import ray

        row = verbs.wanted(self.address(lease), self.session, slot=slot, take=take)
        values: list[str] = ray.get(self.session.sender.resolve(row, deadline()), timeout=20)
        return values

    def release(self, lease: bytes) -> int:
        return self.session.sender.release(self.name, [lease], deadline())

    def renew(self, lease: bytes, ttl: float | None) -> None:
        verbs.renew(self.registry, self.address(lease), ttl, deadline())

    def expires_in_s(self, lease: bytes) -> float | None:
        return verbs.expires_in_s(self.registry, self.address(lease), deadline())

    def labels(self) -> list[str | None]:
        return [info.label for info in whole.leases(self.registry, Query(), None, False, 30)]

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)  # there is nothing to await: that time passes is what is tested


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, str]]:
    """Registries for all tests here: each begins and ends with an empty one."""
    found = {kind: f"contract-{uuid.uuid4().hex[:8]}" for kind in ("core", "actor", "replicas")}
    yield found
    safe_refs.shutdown(found["actor"])
    safe_refs.shutdown(found["replicas"])
    whole.shutdown(core_alone.session().registry(found["core"]), deadline(), force=True)


@pytest.fixture(params=["rules", "core", "actor", "replicas"])
def subject(request: pytest.FixtureRequest, names: dict[str, str]) -> Iterator[Subject]:
    if request.param == "rules":
        yield Rules()
        return
    request.getfixturevalue("cluster")
    if request.param == "replicas":
        patch = request.getfixturevalue("monkeypatch")
        patch.setenv("SAFE_REFS_SHARDS", "2")
        patch.setenv("SAFE_REFS_REPLICAS", "2")
    session = core_alone.session() if request.param == "core" else assembly.client()
    actor = Actor(names[request.param], session)
    assert actor.labels() == []
    yield actor
    assert actor.labels() == []


@pytest.fixture
def lease() -> bytes:
    return os.urandom(16)


def test_what_is_pinned_can_be_resolved_whole_or_by_slot(subject: Subject, lease: bytes) -> None:
    """Again and again, until it is released."""
    subject.pin(lease, ["a", "b"])
    assert [subject.resolve(lease), subject.resolve(lease, 1), subject.resolve(lease)] == [
        ["a", "b"],
        ["b"],
        ["a", "b"],
    ]
    assert subject.release(lease) == 1
    with pytest.raises(safe_refs.LeaseReleasedError):
        subject.resolve(lease)


def test_repeating_a_pin_or_a_release_changes_nothing(subject: Subject, lease: bytes) -> None:
    """Ids are the caller's, so that calls can be made again."""
    subject.pin(lease, ["a"], label="once")
    subject.pin(lease, ["a"], label="once")
    assert subject.labels() == ["once"]
    assert [subject.release(lease) for _ in range(3)] == [1, 0, 0]
    assert subject.labels() == []


def test_a_pin_after_its_release_is_refused(subject: Subject, lease: bytes) -> None:
    """A release that overtakes its pin wins."""
    assert subject.release(lease) == 0
    with pytest.raises(safe_refs.LeaseReleasedError):
        subject.pin(lease, ["a"])
    assert subject.labels() == []


def test_a_lease_ends_with_its_ttl(subject: Subject, lease: bytes) -> None:
    """Not before, and then for good: resolving, renewing and releasing it all find it expired."""
    subject.pin(lease, ["a"], ttl=2.0)
    assert subject.resolve(lease) == ["a"]
    left = subject.expires_in_s(lease)
    assert left is not None
    assert 0 < left <= 2
    subject.wait(2.1)
    assert subject.labels() == []
    for call in (
        lambda: subject.resolve(lease),
        lambda: subject.renew(lease, 5.0),
        lambda: subject.expires_in_s(lease),
    ):
        with pytest.raises(safe_refs.LeaseExpiredError):
            call()
    assert subject.release(lease) == 0


def test_renew_before_the_end_keeps_it(subject: Subject, lease: bytes) -> None:
    """Between making and loading: with a renewal in time there is no expiry; None takes the limit away."""
    subject.pin(lease, ["a"], ttl=1.0)
    subject.renew(lease, 60.0)
    subject.wait(1.1)
    assert subject.resolve(lease) == ["a"]
    subject.renew(lease, None)
    assert subject.expires_in_s(lease) is None
    assert subject.release(lease) == 1


def test_renew_can_shorten(subject: Subject, lease: bytes) -> None:
    """The new time counts, even where the old one was longer."""
    subject.pin(lease, ["a"], ttl=60.0)
    subject.renew(lease, 0.5)
    subject.wait(0.6)
    with pytest.raises(safe_refs.LeaseExpiredError):
        subject.resolve(lease)


def test_uses_and_take(subject: Subject, lease: bytes) -> None:
    """Each resolve is a use; a taken lease is gone with it."""
    subject.pin(lease, ["a"], uses=2)
    assert [subject.resolve(lease) for _ in range(2)] == [["a"], ["a"]]
    with pytest.raises(safe_refs.LeaseUsedUpError):
        subject.resolve(lease)
    other = os.urandom(16)
    subject.pin(other, ["b"])
    assert subject.resolve(other, take=True) == ["b"]
    with pytest.raises(safe_refs.LeaseReleasedError):
        subject.resolve(other)


def test_an_unknown_lease_is_not_found(subject: Subject, lease: bytes) -> None:
    """Never another's objects."""
    with pytest.raises(safe_refs.LeaseNotFoundError):
        subject.resolve(lease)
