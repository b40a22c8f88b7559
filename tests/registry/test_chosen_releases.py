"""`release` by label, job and age, and of rows of `leases()`, on a real registry; and what is refused, before anything ends."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs import aio
from safe_refs.registry.calls import Registry
from tests.support.processes import Driver
from tests.support.waiting import wait_until


def labels() -> list[str | None]:
    return [info.label for info in safe_refs.leases(sizes=False)]


def test_leases_end_by_label_job_and_age(registry: str, driver: Driver) -> None:
    """All that is given must hold; whoever made them, and wherever. A dry run ends none; readers learn who did."""
    held = [safe_refs.dumps(ray.put(number), label=label) for number, label in enumerate(["a", "b", "a", ""])]
    mine = ray.get_runtime_context().get_job_id()
    theirs = driver(
        f"""
        import os
        os.environ["SAFE_REFS_REGISTRY"] = "{registry}"
        kept = [safe_refs.dumps(ray.put(number), label="a") for number in range(3)]
        own = ray.get_runtime_context().get_job_id()
        print(json.dumps([
            safe_refs.release(label="a", dry_run=True),
            safe_refs.release(label="a", job=own),
            safe_refs.release(job="{mine}", label="b", dry_run=True),
            safe_refs.release(job="{mine}", older_than=3600),
            safe_refs.release(job=own),
        ]))
        """
    )
    assert theirs == [5, 3, 1, 0, 0]
    assert labels() == ["a", "b", "a", ""]
    assert safe_refs.release(label="") == 1
    assert safe_refs.release(label="a", older_than=timedelta(milliseconds=1)) == 2
    with pytest.raises(
        safe_refs.LeaseReleasedError, match=rf"by pid {os.getpid()} on node \w+, job {mine} \(.*test_chosen"
    ):
        safe_refs.loads(held[0])
    assert safe_refs.release(job=mine, dry_run=True) == 1
    assert asyncio.run(aio.release(job=mine)) == 1
    assert labels() == []
    assert safe_refs.release(held) == 0


def test_where_no_registry_runs_there_is_nothing_to_end(registry: str) -> None:
    """And none is started for it."""
    assert safe_refs.release(label="a") == safe_refs.release(older_than=1, dry_run=True) == 0
    assert safe_refs.stats() is None


def test_many_leases_end_in_slices(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the registry answers others meanwhile: 200 in a call."""
    safe_refs.dumps_many([ray.put(number) for number in range(900)], label="many")
    asked: list[Any] = []
    ask = Registry.ask

    def count(self: Registry, calls: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(calls)
        return ask(self, calls, *args, **kwargs)

    monkeypatch.setattr(Registry, "ask", count)
    assert safe_refs.release(label="many", dry_run=True) == 900
    assert safe_refs.release(label="many") == 900
    assert len(asked) == 10
    assert labels() == []


def test_a_row_of_a_listing_ends_its_lease(registry: str) -> None:
    """Once, also after it was pickled, and many in one call together with other targets; nothing in a row resolves the lease."""
    payloads = [safe_refs.dumps(ray.put(number), label=f"{number}") for number in range(6)]
    rows = safe_refs.leases()
    assert {row.registry for row in rows} == {registry}
    assert [rows[0].release(), rows[0].release(), pickle.loads(pickle.dumps(rows[1])).release(timeout=20)] == [1, 0, 1]
    with pytest.raises(safe_refs.LeaseReleasedError, match=f"by pid {os.getpid()} "):
        safe_refs.loads(payloads[1])
    assert labels() == ["2", "3", "4", "5"]
    assert safe_refs.release([rows[2], payloads[2], payloads[3], *rows[:2]]) == 2
    assert asyncio.run(aio.release(safe_refs.leases())) == 2
    assert safe_refs.release(rows) == 0
    ids = [safe_refs.inspect(payload).lease_id or "" for payload in payloads]
    assert not any(id_ in repr(rows) or bytes.fromhex(id_) in pickle.dumps(rows) for id_ in ids)
    assert "_mark" not in repr(rows[0])
    with pytest.raises(ValueError, match="a row that leases\\(\\) gave"):
        safe_refs.LeaseInfo(1, "0" * 8, None, 0, None, None, 1, None, "", "", 1, "").release()


def test_a_row_of_a_registry_that_has_restarted_ends_nothing(registry: str) -> None:
    """Its lease was lost; a lease of the new start stays."""
    safe_refs.dumps(ray.put(1))
    (row,) = safe_refs.leases()
    safe_refs.shutdown()
    assert row.release() == 0
    payload = safe_refs.dumps(ray.put(2))
    assert (row.release(), safe_refs.release([row])) == (0, 0)
    assert safe_refs.release(payload) == 1


MISTAKES: dict[str, tuple[Callable[[Any, Any], Any], type[Exception], str]] = {
    "nothing": (lambda ref, payload: safe_refs.release(), TypeError, "needs a target"),
    "None": (lambda ref, payload: safe_refs.release(None), TypeError, "needs a target"),
    "both": (lambda ref, payload: safe_refs.release(payload, label="a"), TypeError, "not both"),
    "a dry run of a target": (lambda ref, payload: safe_refs.release(payload, dry_run=True), TypeError, "dry_run"),
    "another registry": (
        lambda ref, payload: safe_refs.release([payload], registry="o"),
        ValueError,
        "leave registry out",
    ),
    "no name": (lambda ref, payload: safe_refs.release(label="a", registry="o:1"), ValueError, "name"),
    "a number as label": (lambda ref, payload: safe_refs.release(label=1), TypeError, "label must be a string"),  # type: ignore[arg-type]
    "a number as job": (lambda ref, payload: safe_refs.release(job=1), TypeError, "job must be a job's id"),  # type: ignore[arg-type]
    "an empty job": (lambda ref, payload: safe_refs.release(job=""), ValueError, "8 hexadecimal digits"),
    "another job": (lambda ref, payload: safe_refs.release(job="01000000\n"), ValueError, "8 hexadecimal digits"),
    "no age": (lambda ref, payload: safe_refs.release(older_than=0), ValueError, "older_than must be more than 0"),
    "a flag as age": (lambda ref, payload: safe_refs.release(older_than=True), TypeError, "older_than must be seconds"),
    "a set": (lambda ref, payload: safe_refs.release({payload}), TypeError, "a set has no order: pass a list"),
    "a dict": (
        lambda ref, payload: safe_refs.release([{"a": payload}]),  # type: ignore[list-item]
        TypeError,
        r"pass list\(d\) or list\(d\.values",
    ),
    "a set to pin": (lambda ref, payload: safe_refs.pin({ref}), TypeError, "a set has no order: pass a list"),
    "a frozen set to pin": (
        lambda ref, payload: safe_refs.pin(frozenset([ref])),
        TypeError,
        "a frozenset has no order",
    ),
    "a dict to pin": (lambda ref, payload: safe_refs.pin({ref: 1}), TypeError, r"pass list\(d\) or list\(d\.values"),
    "a row to keep alive": (
        lambda ref, payload: safe_refs.keepalive(safe_refs.leases(), 5),  # type: ignore[arg-type]
        TypeError,
        "not by LeaseInfo",
    ),
    "labels listed": (lambda ref, payload: safe_refs.leases(label=123), TypeError, "label must be a string"),  # type: ignore[arg-type]
    "jobs listed": (lambda ref, payload: safe_refs.leases(job="today"), ValueError, "8 hexadecimal digits"),
    "ages listed": (lambda ref, payload: safe_refs.leases(min_age_s="3"), TypeError, "min_age_s must be seconds"),  # type: ignore[arg-type]
    "negative ages": (lambda ref, payload: safe_refs.leases(min_age_s=-1), ValueError, "min_age_s must be more than 0"),
    "sizes listed": (lambda ref, payload: safe_refs.leases(min_bytes="3"), TypeError, "min_bytes must be a number"),  # type: ignore[arg-type]
    "negative sizes": (lambda ref, payload: safe_refs.leases(min_bytes=-1), ValueError, "min_bytes must be at least 0"),
    "a limit": (lambda ref, payload: safe_refs.leases(limit="3"), TypeError, "limit must be a whole number"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_and_ends_nothing(cluster: str, mistake: str) -> None:
    """By the type of error and a text that say what to write."""
    call, error, text = MISTAKES[mistake]
    ref = ray.put("kept")
    payload = safe_refs.dumps(ref, label="a")
    with pytest.raises(error, match=text):
        call(ref, payload)
    assert labels() == ["a"]
    assert safe_refs.release(payload) == 1


def test_what_can_be_meant_by_nothing_else_is_taken(cluster: str) -> None:
    """A dict's values or keys, an age or a size of 0, a size as a float."""
    ref = ray.put("kept")
    handles = safe_refs.pin({"a": ref}.values())
    assert len(safe_refs.leases(min_age_s=0, min_bytes=0.0, limit=None)) == 1
    wait_until(lambda: len(safe_refs.leases(min_age_s=timedelta(milliseconds=50))) == 1)
    assert safe_refs.release(dict.fromkeys(handles).keys()) == 1
