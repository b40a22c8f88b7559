"""Pins that nobody waits for, until they are acknowledged: without Ray, to a registry that is none."""

from __future__ import annotations

import gc
import logging
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, cast

import pytest

from safe_refs._ray import exits
from safe_refs.batching import unacknowledged
from safe_refs.batching.accounts import Account, current
from safe_refs.batching.groups import Batched
from safe_refs.batching.unacknowledged import Unacknowledged
from safe_refs.errors import OwnerGoneError, RegistryFullError, RegistryUnavailableError
from safe_refs.registry.sessions import Session
from tests.support.registries import FakeRegistry, FakeSession, plan, within
from tests.support.waiting import stays, wait_until


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSession]:
    monkeypatch.setattr(exits, "call_before_exit", lambda hook, first: None)
    made = FakeSession()
    made.sender = Batched(cast(Session, made))
    yield made
    for registry in made.registries.values():
        registry.gate.set()
    made.sender.close()


@pytest.fixture
def posted(session: FakeSession) -> Iterator[Unacknowledged]:
    made = Unacknowledged(cast(Session, session))
    yield made
    made.close()


@pytest.fixture
def one(session: FakeSession) -> FakeRegistry:
    return session.registry("one")


def test_wings_hear_of_it_before_it_is_counted_off(
    session: FakeSession, posted: Unacknowledged, one: FakeRegistry
) -> None:
    """Of what is borrowed, by a thread of the background: other pins wait for the one that sends. Of others they need not hear."""
    own, borrowed = plan([1]), plan([2], borrowed=True)
    one.gate.clear()
    for each in (own, borrowed):
        assert posted.post("one", each, within(20))
    assert posted.is_sending
    one.gate.set()
    posted.flush(within(20))
    assert session.told == [(borrowed.lease, True, "safe_refs-background")]
    assert not posted.is_sending


def test_what_is_counted_off_before_it_is_held_is_released(
    session: FakeSession, posted: Unacknowledged, one: FakeRegistry
) -> None:
    """Its `post` was interrupted after it went out: its caller has got an error, so nobody is to have the lease."""
    own = plan([1])
    one.gate.clear()
    assert posted.post("one", own, within(20))
    assert posted._count_off(1, None)
    one.gate.set()
    wait_until(lambda: own.lease in one.ended)
    assert not posted.is_sending


def test_what_failed_is_released_and_goes_to_its_account(
    session: FakeSession, posted: Unacknowledged, one: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Once; it is logged; and wings hear that it failed."""
    failing, mine = plan(), Account()
    one.refused[failing.lease] = RegistryFullError("full")
    token = current.set(mine)
    for each in (plan(), failing, plan()):
        posted.post("one", each, within(20))
    current.reset(token)
    with caplog.at_level(logging.ERROR, logger="safe_refs"):
        posted.flush(within(20))  # whose account is another one
        with pytest.raises(
            RegistryFullError, match=f"^lease {failing.lease[:4].hex()} could not be held: full"
        ) as caught:
            posted.flush(within(20), mine)
        posted.flush(within(20), mine)
    assert caught.value.lease == failing.lease[:4].hex()
    assert sum("could not be held" in message for message in caplog.messages) == 1
    assert (failing.lease, False) in [(lease, held) for lease, held, _ in session.told]
    assert failing.lease in one.ended


def test_its_release_may_overtake_it(session: FakeSession, posted: Unacknowledged, one: FakeRegistry) -> None:
    """Then it counts as acknowledged: no error; but wings hear that the registry doesn't hold it."""
    overtaken = plan()
    one.release_later([overtaken.lease])
    posted.post("one", overtaken, within(20))
    posted.flush(within(20))
    assert [(lease, held) for lease, held, _ in session.told] == [(overtaken.lease, False)]


def test_a_wing_that_refuses_what_is_held(session: FakeSession, posted: Unacknowledged, one: FakeRegistry) -> None:
    """Nothing of it stays held, and `flush` raises the error."""
    session.refuse.append(OwnerGoneError("a wing says so"))
    refused = plan([1], borrowed=True)
    posted.post("one", refused, within(20))
    with pytest.raises(OwnerGoneError, match="a wing"):
        posted.flush(within(20))
    assert [held for _, held, _ in session.told] == [True, False]
    assert refused.lease not in one.held


def test_no_reference_is_used_once_all_are_counted_off(
    session: FakeSession, posted: Unacknowledged, one: FakeRegistry
) -> None:
    """`is_sending` says so: whoever anchors relies on it. Without the collector."""

    class Ref:
        pass

    one.gate.clear()
    refs = [Ref() for _ in range(5)]
    alive = [weakref.ref(ref) for ref in refs]
    gc.collect()
    gc.disable()
    try:
        for number, ref in enumerate(refs):
            failing = plan([ref], borrowed=number % 2 == 0)  # as what is held would stay alive here
            one.refused[failing.lease] = RegistryFullError("full")
            posted.post("one", failing, within(20))
        del failing, ref, refs
        assert all(each() is not None for each in alive)
        one.gate.set()
        wait_until(lambda: not posted.is_sending)
        assert [each() for each in alive] == [None] * 5
    finally:
        gc.enable()
    with pytest.raises(RegistryFullError):
        posted.flush(within(5))


def test_a_bound_on_those_that_wait(posted: Unacknowledged, one: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """`post` waits for room, up to its deadline, and then refuses; an event loop is told at once. There was no such refusal."""
    monkeypatch.setattr(unacknowledged, "_MOST", 3)
    one.gate.clear()
    for _ in range(3):
        assert posted.post("one", plan(), within(20), blocks=False)
    assert not posted.post("one", plan(), within(20), blocks=False)
    begun = time.monotonic()
    with pytest.raises(RegistryUnavailableError, match=r"within 0\.2 s"):
        posted.post("one", plan(), within(0.2))
    assert 0.1 < time.monotonic() - begun < 2
    threading.Timer(0.2, one.gate.set).start()
    assert posted.post("one", plan(), within(20))
    posted.flush(within(20))
    assert len(one.held) == 4


def test_flush_waits_no_longer_than_the_timeout(posted: Unacknowledged, one: FakeRegistry) -> None:
    """And may be called again."""
    one.gate.clear()
    posted.post("one", plan(), within(20))
    begun = time.monotonic()
    with pytest.raises(
        RegistryUnavailableError, match=r"1 pin\(s\) are not acknowledged after 0\.2 s.*call flush\(\) again"
    ):
        posted.flush(within(0.2))
    assert 0.1 < time.monotonic() - begun < 2
    one.gate.set()
    posted.flush(within(20))


def test_closing_ends_all_waiting(session: FakeSession, posted: Unacknowledged, one: FakeRegistry) -> None:
    """Whoever waits in `flush`, and whoever waits for room, is told that the connection has ended; nothing more is posted."""
    one.gate.clear()
    posted.post("one", plan(), within(20))
    found: list[BaseException] = []

    def flush() -> None:
        try:
            posted.flush(within(20))
        except RegistryUnavailableError as error:
            found.append(error)

    waiting = threading.Thread(target=flush)
    waiting.start()
    wait_until(lambda: bool(posted._waiters))
    posted.close()
    waiting.join(5)
    assert re.match(r"lease [0-9a-f]{8} could not be held: the connection to Ray has ended", str(found[0]))
    assert not posted.is_sending
    with pytest.raises(RegistryUnavailableError, match="the connection"):
        posted.post("one", plan(), within(5))


def test_who_is_interrupted_while_posting_holds_nothing(
    posted: Unacknowledged, one: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pin may be on its way already: it ends as soon as it comes."""
    interrupted = plan()
    post = posted._session.sender.post

    def interrupt(*args: Any) -> None:
        post(*args)
        raise KeyboardInterrupt

    one.gate.clear()
    monkeypatch.setattr(posted._session.sender, "post", interrupt)
    with pytest.raises(KeyboardInterrupt):
        posted.post("one", interrupted, within(20))
    posted.flush(within(1))
    one.gate.set()
    wait_until(lambda: interrupted.lease in one.ended)
    assert interrupted.lease not in one.held


def test_one_flush_is_for_all_connections(session: FakeSession, posted: Unacknowledged, one: FakeRegistry) -> None:
    """The function waits for all of this process."""
    other = FakeSession()
    other.sender = Batched(cast(Session, other))
    others = Unacknowledged(cast(Session, other))
    try:
        other.registry("one").fail = [RegistryFullError("full"), RegistryFullError("full")]
        posted.post("one", plan(), within(20))
        others.post("one", plan(), within(20))
        with pytest.raises(RegistryFullError):
            unacknowledged.flush(within(20))
        unacknowledged.flush(within(20))
        assert len(one.held) == 1
    finally:
        others.close()
        other.sender.close()


def test_the_end_of_the_process_waits_for_what_was_posted(
    session: FakeSession, posted: Unacknowledged, one: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Of all connections; what fails is logged, and raises nothing. A `flush` that is under way gets the error all the same."""
    one.gate.clear()
    posted.post("one", plan(), within(20))
    wait_until(lambda: bool(one.asked))
    one.fail = [RegistryFullError("full"), RegistryFullError("full")]
    ends = threading.Thread(target=unacknowledged._flush_at_exit)
    with caplog.at_level(logging.ERROR, logger="safe_refs"):
        ends.start()
        stays(ends.is_alive, 0.2)
        one.gate.set()
        ends.join(10)
        wait_until(lambda: any("could not be held" in message for message in caplog.messages))
    assert not ends.is_alive()
    with pytest.raises(RegistryFullError):
        posted.flush(within(20))
    session.pid += 1  # as in a forked child, which waits for nothing of its parent's
    posted._waiting[99] = unacknowledged._Posted(Account(), "01020304")
    begun = time.monotonic()
    unacknowledged._flush_at_exit()
    posted.close()
    assert time.monotonic() - begun < 1
    session.pid -= 1
    posted._waiting.clear()


def test_a_process_that_ends_says_what_it_leaves_behind(
    session: FakeSession,
    posted: Unacknowledged,
    one: FakeRegistry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The registry is silent until the end's patience is over."""
    monkeypatch.setattr(unacknowledged, "_LAST_WAIT_S", 0.1)
    one.gate.clear()
    posted.post("one", plan(), within(20))
    with caplog.at_level(logging.ERROR, logger="safe_refs"):
        unacknowledged._flush_at_exit()
    monkeypatch.setattr(unacknowledged, "_LAST_WAIT_S", 10.0)
    begun = time.monotonic()
    unacknowledged._flush_at_exit()  # `ray.shutdown`, and then the end of the process
    assert time.monotonic() - begun < 1
    assert any("the process ends, or leaves Ray, and 1 pin(s)" in message for message in caplog.messages)
    one.gate.set()
    posted.flush(within(20))


def test_what_makes_work_for_other_hooks_runs_before_them() -> None:
    """In whatever order they were registered: `atexit` alone would run the one first that came last."""
    code = """
from safe_refs._ray import exits
exits.call_before_exit(lambda: print("flushes"), first=True)
anchors = lambda: print("anchors")
for _ in range(2):
    exits.call_before_exit(anchors)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["flushes", "anchors"]


def test_ctrl_c_ends_the_wait_of_one_hook_only() -> None:
    """The user is tired of waiting for the registry; the owners are to know this process's borrowers nevertheless."""
    code = """
from safe_refs._ray import exits
def flushes():
    raise KeyboardInterrupt
exits.call_before_exit(flushes, first=True)
exits.call_before_exit(lambda: print("anchors"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["anchors"]
    assert "KeyboardInterrupt" in done.stderr


def test_what_a_hook_registers_as_it_is_called_is_called_too() -> None:
    """The first lease that depends on a process may be acknowledged by the flush at its end."""
    code = """
from safe_refs._ray import exits
anchors = lambda: print("anchors")
def flushes():
    print("flushes")
    exits.call_before_exit(anchors)
exits.call_before_exit(flushes, first=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["flushes", "anchors"]
