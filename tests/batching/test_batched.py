"""How a session's requests go to its groups: without Ray, to a registry that is none."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest

import safe_refs.batching
from safe_refs.batching import groups, queues
from safe_refs.batching.groups import Batched
from safe_refs.config import Deadline
from safe_refs.errors import RegistryFullError, RegistryUnavailableError
from safe_refs.registry.sessions import Session
from tests.support.registries import HELD, FakeRegistry, FakeSession, plan, wanted, within
from tests.support.waiting import wait_until


@pytest.fixture
def session() -> Iterator[FakeSession]:
    made = FakeSession()
    made.sender = Batched(cast(Session, made))
    yield made
    for registry in made.registries.values():
        registry.gate.set()
    made.sender.close()


@pytest.fixture
def one(session: FakeSession) -> FakeRegistry:
    return session.registry("one")


def silence(one: FakeRegistry, pool: ThreadPoolExecutor, verb: str, deadline: Deadline) -> Any:
    """The registry doesn't answer; one call is under way."""
    one.gate.clear()
    sender = one.here.sender
    leases = [os.urandom(16)]
    first = (
        pool.submit(sender.release, "one", leases, deadline)
        if verb == "release"
        else pool.submit(sender.pin, "one", plan(), deadline)
    )
    wait_until(lambda: len(one.asked) == 1)
    return first


def test_a_lone_pin_passes_few_functions(session: FakeSession, one: FakeRegistry) -> None:
    """Three of this wing, in one file, before the call goes out."""
    here, seen = str(Path(safe_refs.batching.__file__).parent), list[tuple[str, str]]()
    session.sender.pin("one", plan(), within(5))  # from now on, it knows the registry

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(here) and len(one.asked) == 1:
            seen.append((Path(code.co_filename).name, code.co_name))

    sys.setprofile(note)
    try:
        session.sender.pin("one", plan(), within(5))
    finally:
        sys.setprofile(None)
    assert seen == [("groups.py", name) for name in ("pin", "ask", "_pin")]


def waiting(session: FakeSession, count: int) -> bool:
    """Whether so many requests are in a shared call, or queue."""
    group = session.sender._pins["one"]
    return bool(sum(map(len, group._under_way.values())) + group._sending.items.qsize() == count)


def test_many_go_in_calls_of_a_thousand(session: FakeSession, one: FakeRegistry) -> None:
    """What such a call does not decide is asked for by itself; the answers come in order, whatever the registry."""
    plans = [plan([number]) for number in range(2300)]
    one.undecided.add(plans[7].lease)
    assert session.sender.pin_many("one", plans, within(5)) == [HELD] * 2300
    assert one.asked == [("pin", 1000), ("pin", 1), ("pin", 1000), ("pin", 300)]
    two = session.registry("two")
    two.held = {b"a": ["A"], b"b": ["B"]}
    rows = [wanted(b"a", "two"), *(wanted(each.lease) for each in plans), wanted(b"b", "two")]
    found: dict[int, Any] = {}
    session.sender.resolve_many(rows, within(5), found)
    assert [found[place] for place in range(2302)] == [["A"], *([number] for number in range(2300)), ["B"]]
    assert two.asked == [("resolve", 2)]
    assert session.sender.release("one", [each.lease for each in plans], within(5)) == 2300


def test_a_lease_that_two_threads_release_counts_once(session: FakeSession, one: FakeRegistry) -> None:
    """Also if both go in one call."""
    kept = plan()
    session.sender.pin("one", kept, within(5))
    one.asked.clear()
    with ThreadPoolExecutor(4) as pool:
        first = silence(one, pool, "release", within(20))
        second = pool.submit(session.sender.release, "one", [b"other"], within(20))
        wait_until(lambda: len(one.asked) == 2)
        both = [pool.submit(session.sender.release, "one", [kept.lease], within(20)) for _ in range(2)]
        wait_until(lambda: session.sender._releases["one"]._sending.items.qsize() == 2)
        one.gate.set()
        assert first.result(10) == second.result(10) == 0
        assert sorted(each.result(10) for each in both) == [0, 1]
    assert one.asked == [("release", 1), ("release", 1), ("release", 2)]


@pytest.mark.parametrize("verb", ["release", "pin"])
def test_a_request_takes_no_longer_than_its_timeout(session: FakeSession, one: FakeRegistry, verb: str) -> None:
    """Once it was up to twice that for a release, for which the time began anew when its turn came."""
    with ThreadPoolExecutor(3) as pool:
        first = silence(one, pool, verb, within(1.0))
        time.sleep(0.3)
        begun = time.monotonic()
        ask, what = (session.sender.release, [b"x"]) if verb == "release" else (session.sender.pin, plan())
        with pytest.raises(RegistryUnavailableError, match="within 1 s"):
            ask("one", what, within(1.0))
        assert time.monotonic() - begun < 1.5
        assert isinstance(first.exception(10), RegistryUnavailableError)


@pytest.mark.parametrize("way", ["answered", "raised"])
def test_what_failed_keeps_no_references(
    session: FakeSession, one: FakeRegistry, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Not even until the next garbage collection: alone, with others, and many at once; whether the error was an answer or not."""
    monkeypatch.setattr(queues, "_LINGERS_S", 20.0)  # so that two wait together, however slow the machine

    class Ref:
        pass

    alive: list[Any] = []

    def pin(many: bool) -> None:
        each = plan([Ref()])
        alive.append(weakref.ref(each.refs[0]))
        if way == "answered":
            one.refused[each.lease] = RegistryFullError("full")
        try:
            if many:
                session.sender.pin_many("one", [each, each], within(5))
            else:
                session.sender.pin("one", each, within(5))
        except RegistryFullError as error:
            assert error.__context__ is None  # noqa: PT017 # what `raises` would keep is what this looks for

    gc.collect()
    gc.disable()
    try:
        for many in (False, True):
            one.fail = [RegistryFullError("full")] if way == "raised" else []
            pin(many)
        with ThreadPoolExecutor(3) as pool:
            one.asked.clear()
            first = silence(one, pool, "pin", within(20))
            one.fail = [RegistryFullError("full") for _ in range(9)] if way == "raised" else []
            one.fail.append(ZeroDivisionError())
            others = [pool.submit(pin, False)]
            wait_until(lambda: waiting(session, 1))  # by now there is a thread that sends, and only one
            others.append(pool.submit(pin, False))
            wait_until(lambda: waiting(session, 2))
            one.gate.set()
            wait_until(first.done)
            for each in others:
                each.result(10)
            del others, each, first
        one.refused.clear()  # as these errors have been raised, and know the frames of this test
        assert [each() for each in alive] == [None] * 4
    finally:
        gc.enable()


def test_a_registry_has_one_group_whatever_the_timeouts(session: FakeSession, one: FakeRegistry) -> None:
    """And groups are forgotten when there are too many, but for those that are in use."""
    for number in range(50):
        session.sender.pin("one", plan(), within(10 + number))
    assert list(session.sender._pins) == ["one"]
    with ThreadPoolExecutor(1) as pool:
        one.asked.clear()
        first = silence(one, pool, "pin", within(20))
        for number in range(100):
            session.sender.pin(f"other-{number}", plan(), within(5))
        assert "one" in session.sender._pins
        assert len(session.sender._pins) <= groups._MOST_GROUPS + 1
        one.gate.set()
        assert first.result(10) == HELD


def test_a_session_that_ends_answers_all(session: FakeSession, one: FakeRegistry) -> None:
    """Also those in a call that is under way still; the groups' threads end; later requests are refused at once."""
    told: list[Exception | None] = []
    before = set(threading.enumerate())

    def ours() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "safe_refs-sending" and each not in before]

    with ThreadPoolExecutor(3) as pool:
        first = silence(one, pool, "pin", within(20))
        others = [pool.submit(session.sender.pin, "one", plan(), within(20))]
        wait_until(lambda: waiting(session, 1))  # by now there is a thread that sends, and only one
        others.append(pool.submit(session.sender.pin, "one", plan(), within(20)))
        wait_until(lambda: waiting(session, 2))
        session.sender.post("one", plan(), within(20), lambda _, error: told.append(error))
        assert ours()
        begun = time.monotonic()
        session.sender.close()
        for each in others:
            assert "the connection" in str(each.exception(10))
        wait_until(lambda: len(told) == 1)
        assert "the connection" in str(told[0])
        assert time.monotonic() - begun < 1
        for name in ("one", "two"):
            with pytest.raises(RegistryUnavailableError, match="the connection"):
                session.sender.pin(name, plan(), within(5))
        one.gate.set()
        assert first.exception(10) is None, "its call was under way"
    wait_until(lambda: not ours())


def test_closing_in_a_forked_child_waits_for_nothing(session: FakeSession, one: FakeRegistry) -> None:
    """What waits there is its parent's."""
    session.sender._pin_group("one")
    pid = os.fork()
    if pid == 0:
        session.sender.close()
        os._exit(0)
    wait_until(lambda: os.waitpid(pid, os.WNOHANG) == (pid, 0), 10)
