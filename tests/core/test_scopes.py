"""Scopes, and the ttl that a process gives by default."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import pytest
import ray

import safe_refs
from tests.support.store import live


def test_leases_made_in_a_scope_end_with_it(cluster: str) -> None:
    """Whatever the code called inside makes, by `dumps`, `dump` or `pin`; what was made before or after stays."""

    def elsewhere() -> Any:
        return safe_refs.pin([ray.put(1), ray.put(2)])

    before = safe_refs.dumps(ray.put("before"), label="before")
    with safe_refs.scope():
        inside = safe_refs.dumps(ray.put("inside"))
        handles = elsewhere()
        assert len(live()) == 3
    assert live() == ["before"]
    for lost in (lambda: safe_refs.loads(inside), handles[1].resolve):
        with pytest.raises(safe_refs.LeaseReleasedError):
            lost()
    after = safe_refs.dumps(ray.put("after"))
    assert safe_refs.release([before, after]) == 2


def test_a_scope_ends_its_leases_also_on_an_exception(cluster: str) -> None:
    """And the exception passes."""

    def fail() -> None:
        with safe_refs.scope():
            safe_refs.dumps(ray.put(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert live() == []


def test_keep_exempts_a_lease(cluster: str) -> None:
    """By payload, handle or text; what is kept is the caller's to release. In nested scopes it belongs to the one around."""
    with safe_refs.scope() as scope:
        kept = scope.keep(safe_refs.dumps(ray.put("kept")))
        safe_refs.dumps(ray.put("not kept"))
        assert ray.get(safe_refs.loads(kept), timeout=20) == "kept"
    assert len(live()) == 1
    assert safe_refs.release(kept) == 1
    with safe_refs.scope():
        with safe_refs.scope() as inner:
            inner.keep(str(safe_refs.pin(ray.put("passed on"), label="passed on")))
            safe_refs.pin(ray.put("inner"))
        assert live() == ["passed on"]
    assert live() == []
    with pytest.raises(RuntimeError, match="closed"):
        inner.keep(kept)


def test_a_scope_gives_its_terms_to_what_is_made_inside(cluster: str) -> None:
    """Its ttl and label count where a call names none; the innermost scope that has one decides."""
    with safe_refs.scope(ttl=100, label="outer"), safe_refs.scope(label="inner"):
        safe_refs.pin(ray.put(1))
        safe_refs.pin(ray.put(2), ttl=5, label="own")
        safe_refs.pin(ray.put(3), ttl=float("inf"))
        first, second, third = safe_refs.leases(sizes=False)
    assert (first.label, second.label, third.label) == ("inner", "own", "inner")
    assert first.expires_in_s == pytest.approx(100, abs=20)
    assert second.expires_in_s == pytest.approx(5, abs=5)
    assert third.expires_in_s is None


def test_a_pickler_takes_the_terms_of_the_scope_in_which_it_dumps(cluster: str) -> None:
    """Not of the one in which it was made."""
    file = io.BytesIO()
    pickler = safe_refs.Pickler(file)
    with safe_refs.scope(ttl=100, label="scope"):
        pickler.dump(ray.put(1))
        (info,) = safe_refs.leases(sizes=False)
    assert info.label == "scope"
    assert info.expires_in_s == pytest.approx(100, abs=20)
    assert live() == []


def test_each_thread_has_scopes_of_its_own(cluster: str) -> None:
    """What another thread makes meanwhile is not ended."""
    made: list[bytes] = []
    with safe_refs.scope():
        thread = threading.Thread(target=lambda: made.append(safe_refs.dumps(ray.put("other thread"))))
        thread.start()
        thread.join()
    assert ray.get(safe_refs.loads(made[0]), timeout=20) == "other thread"
    assert safe_refs.release(made) == 1


def test_scopes_work_in_asyncio_tasks(cluster: str) -> None:
    """Tasks with scopes of their own don't meddle with each other; one started inside belongs to the scope while that is open."""

    async def work(label: str) -> tuple[bytes, bytes]:
        async with safe_refs.scope(label=label) as scope:
            await asyncio.sleep(0.02)
            lost = safe_refs.dumps(ray.put(label))
            await asyncio.sleep(0.02)
            kept = scope.keep(safe_refs.dumps(ray.put(label)))
        return lost, kept

    async def main() -> None:
        done = await asyncio.gather(*(work(f"task {number}") for number in range(5)))
        for number, (lost, kept) in enumerate(done):
            assert ray.get(safe_refs.loads(kept), timeout=20) == f"task {number}"
            with pytest.raises(safe_refs.LeaseReleasedError):
                safe_refs.loads(lost)
        assert safe_refs.release(kept for _, kept in done) == 5
        made, go_on = asyncio.Event(), asyncio.Event()

        async def outlives() -> bytes:
            safe_refs.dumps(ray.put("inside"))
            made.set()
            await go_on.wait()
            return safe_refs.dumps(ray.put("later"))

        async with safe_refs.scope():
            task = asyncio.create_task(outlives())
            await made.wait()
            assert len(live()) == 1
        assert live() == []
        go_on.set()
        assert safe_refs.release(await task) == 1

    asyncio.run(main())


def test_a_scope_is_for_one_use_and_checks_its_terms(cluster: str) -> None:
    """Entering twice is a mistake, as is a ttl that can't be."""
    scope = safe_refs.scope()
    with scope:
        pass
    with pytest.raises(RuntimeError, match="once"), scope:
        pass
    with pytest.raises(ValueError, match="ttl"):
        safe_refs.scope(ttl=0)


def test_a_default_ttl_can_be_set_for_the_process(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None unless set; by `SAFE_REFS_TTL` or `init`; a call's own ttl wins, and infinity is none."""
    safe_refs.pin(ray.put(0)).release()
    plain = safe_refs.pin(ray.put(1))
    assert safe_refs.expires_in_s(plain) is None
    monkeypatch.setenv("SAFE_REFS_TTL", "50")
    by_default = safe_refs.dumps(ray.put(2))
    left = safe_refs.expires_in_s(by_default)
    assert left is not None
    assert 20 < left <= 50
    unlimited = safe_refs.pin(ray.put(3), ttl=float("inf"))
    assert safe_refs.expires_in_s(unlimited) is None
    assert safe_refs.release([plain, by_default, unlimited]) == 3
    with pytest.raises(safe_refs.LeaseReleasedError):
        safe_refs.expires_in_s(plain)


def test_a_long_scope_forgets_what_has_ended(cluster: str) -> None:
    """A scope that a service keeps open for its whole life remembers its live leases only, whoever in the process ends them."""
    with safe_refs.scope() as scope:
        for number in range(20):
            safe_refs.release(safe_refs.dumps(ray.put(number)))
            safe_refs.loads(safe_refs.dumps(ray.put(number)), take=True)
        payload = safe_refs.dumps(ray.put("elsewhere"))
        thread = threading.Thread(target=safe_refs.release, args=(payload,))
        thread.start()
        thread.join()
        assert repr(scope) == "<scope with 0 lease(s)>"
        safe_refs.dumps(ray.put("kept"))
        assert repr(scope) == "<scope with 1 lease(s)>"
    assert live() == []
