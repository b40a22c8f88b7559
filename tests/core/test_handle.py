"""`SafeRef` and `pin`: small values that name a reference, wherever they travel."""

from __future__ import annotations

import asyncio
import copy
import datetime
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

import safe_refs
from safe_refs import SafeRef, aio
from safe_refs.envelope import LeaseAddress
from safe_refs.errors import EnvelopeError
from tests.support.cluster import as_actor
from tests.support.tasks import when_told
from tests.support.values import MB

ADDRESS = LeaseAddress("default", bytes(range(28)), b"epoch..1", 3, bytes(range(16)))
HANDLE = SafeRef[Any](ADDRESS, 2)


@pytest.mark.parametrize(
    "travel",
    [
        lambda handle: SafeRef.parse(str(handle)),
        lambda handle: SafeRef.from_bytes(bytes(handle)),
        lambda handle: SafeRef.parse(json.loads(json.dumps({"ref": str(handle)}))["ref"]),
        *(lambda handle, protocol=protocol: pickle.loads(pickle.dumps(handle, protocol)) for protocol in range(6)),
        lambda handle: pickle.loads(cloudpickle.dumps(handle)),
        lambda handle: safe_refs.loads(safe_refs.dumps({"h": [handle]}))["h"][0],
        copy.copy,
        copy.deepcopy,
    ],
)
def test_a_handle_survives_every_way_to_travel(travel: Any) -> None:
    """Text, JSON, bytes and any pickler give back an equal handle with an equal hash; none needs Ray."""
    other = travel(HANDLE)
    assert type(other) is SafeRef
    assert other == HANDLE
    assert hash(other) == hash(HANDLE)
    assert (other.lease_id, other.slot, other.address) == (HANDLE.lease_id, 2, ADDRESS)


def test_a_handles_text_is_one_word_that_is_safe_in_urls() -> None:
    """It can stand in a URL, a shell command or a CSV field without quoting."""
    text = str(HANDLE)
    assert text.startswith("safe-ref:")
    assert set(text.removeprefix("safe-ref:")) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )
    assert len(text) < 200


def test_a_handle_is_a_value() -> None:
    """Equal by what it names, usable in sets, different by slot and lease; immutable."""
    assert SafeRef(ADDRESS, 2) == HANDLE
    assert SafeRef(ADDRESS, 1) != HANDLE
    assert SafeRef(ADDRESS._replace(lease=bytes(16)), 2) != HANDLE
    assert HANDLE != "safe-ref:x"
    assert len({HANDLE, SafeRef(ADDRESS, 2), SafeRef(ADDRESS, 3)}) == 2
    with pytest.raises(AttributeError, match="immutable"):
        HANDLE.slot = 3  # type: ignore[misc] # the point
    with pytest.raises(AttributeError, match="immutable"):
        HANDLE._slot = 3
    with pytest.raises(AttributeError, match="immutable"):
        del HANDLE._slot


def test_repr_gives_nothing_away() -> None:
    """What logs and tracebacks show of a handle resolves nothing."""
    assert repr(HANDLE) == "<SafeRef 00010203[2]>"
    assert HANDLE.lease_id not in repr([HANDLE])


@given(st.data())
def test_altered_or_cut_text_and_bytes_are_refused(data: st.DataObject) -> None:
    """A handle with any character or byte changed or missing is an `EnvelopeError`."""
    text, raw = str(HANDLE), bytes(HANDLE)
    at = data.draw(st.integers(0, len(raw) - 1))
    altered = bytearray(raw)
    altered[at] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(altered), raw[:at], raw + b"x"):
        with pytest.raises(EnvelopeError):
            SafeRef.from_bytes(broken)
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(EnvelopeError):
        SafeRef.parse(text[:cut])


def test_pin_gives_one_handle_or_a_list_of_one_lease(cluster: str) -> None:
    """A reference gives a handle; an iterable gives handles in its order, all of one lease."""
    single = safe_refs.pin(ray.put("one"), label="single")
    several = safe_refs.pin((ray.put(number) for number in range(3)), label="several")
    assert single.get(20) == "one"
    assert [handle.get(20) for handle in several] == [0, 1, 2]
    assert len({handle.lease_id for handle in several}) == 1
    assert [info.references for info in safe_refs.leases(label="several")] == [3]
    assert safe_refs.release(several) == 1
    assert single.release() == 1
    assert single.release() == 0
    assert safe_refs.pin([]) == []


@pytest.mark.parametrize("wrong", [5, "text", [1], None])
def test_pin_of_something_else_is_a_type_error(cluster: str, wrong: Any) -> None:
    """And nothing is pinned."""
    with pytest.raises(TypeError, match=r"pin takes a ray\.ObjectRef"):
        safe_refs.pin(wrong)


def test_a_handle_resolves_to_a_tracked_reference(cluster: str) -> None:
    """`resolve` gives an `ObjectRef` equal to the first, which outlives the lease."""
    first = ray.put(b"r" * MB)
    handle = safe_refs.pin(first)
    second = handle.resolve()
    assert second == first
    del first
    assert handle.release() == 1
    assert ray.get(second, timeout=20) == b"r" * MB


def test_a_handle_can_be_awaited(cluster: str, tmp_path: Path) -> None:
    """`await handle` gives the value, without blocking the loop: others go on meanwhile."""
    told = tmp_path / "told"

    async def main() -> tuple[str, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1
                if ticks == 10:
                    told.touch()

        ticking = asyncio.create_task(tick())
        got = await handle
        ticking.cancel()
        return got, ticks

    handle = safe_refs.pin(when_told.remote(str(told), "slow value"))
    got, ticks = asyncio.run(main())
    assert got == "slow value"
    assert ticks >= 10
    handle.release()


def test_a_handle_as_a_context_manager_releases_at_the_end(cluster: str) -> None:
    """Also when the block fails."""
    with safe_refs.pin(ray.put(1)) as handle:
        assert handle.get(20) == 1
    with pytest.raises(safe_refs.LeaseReleasedError):
        handle.get(20)
    with pytest.raises(ZeroDivisionError), safe_refs.pin(ray.put(1)) as handle:
        raise ZeroDivisionError
    assert handle.release() == 0


def test_get_waits_no_longer_than_the_timeout(cluster: str) -> None:
    """`get(timeout)` raises Ray's own timeout error for a value that isn't there yet; the lease stays."""

    class Gate:
        def __init__(self) -> None:
            import threading

            self.opened = threading.Event()

        def open(self) -> None:
            self.opened.set()

        def wait(self) -> str:
            self.opened.wait(60)
            return "through"

    gate = as_actor(Gate).options(max_concurrency=2).remote()
    handle = safe_refs.pin(gate.wait.remote())
    with pytest.raises(ray.exceptions.GetTimeoutError):
        handle.get(0.2)
    ray.get(gate.open.remote())
    assert handle.get(20) == "through"
    handle.release()


def test_a_failed_task_gives_its_own_error(cluster: str) -> None:
    """The lease of a reference to a failed task resolves, and the value is the task's error."""

    @ray.remote(num_cpus=0)
    def fail() -> None:
        raise ZeroDivisionError("in the task")

    handle = safe_refs.pin(fail.remote())
    with pytest.raises(ZeroDivisionError, match="in the task"):
        handle.get(20)
    handle.release()


def test_renew_and_ttl_take_seconds_and_timedeltas(cluster: str) -> None:
    """A lease's time can be set and changed, by the handle or by the payload, and `leases()` shows it."""
    handle = safe_refs.pin(ray.put(1), ttl=datetime.timedelta(hours=2))
    (info,) = safe_refs.leases()
    assert info.expires_in_s == pytest.approx(7200, abs=30)
    handle.renew(60)
    (info,) = safe_refs.leases()
    assert info.expires_in_s == pytest.approx(60, abs=30)
    payload = safe_refs.dumps(ray.put(2))
    safe_refs.renew(payload, datetime.timedelta(minutes=5))
    assert [info.expires_in_s for info in safe_refs.leases()] == [pytest.approx(60, abs=30), pytest.approx(300, abs=30)]
    assert safe_refs.release([handle, payload]) == 2
    with pytest.raises(safe_refs.LeaseReleasedError):
        handle.renew(5)
    with pytest.raises(EnvelopeError, match="no lease"):
        safe_refs.renew(safe_refs.dumps(1), 5)


@pytest.mark.long
def test_a_handle_is_typed_by_its_value(tmp_path: Any) -> None:
    """A type checker knows `SafeRef[int].get()` as int and `pin(ref)` as a `SafeRef` of the reference's type."""
    from mypy import api

    source = tmp_path / "user.py"
    source.write_text(
        "import ray\n"
        "from safe_refs import SafeRef, pin, loads\n"
        "ref: 'ray.ObjectRef[int]'\n"
        "handle = pin(ref)\n"
        "reveal_type(handle)\n"
        "reveal_type(handle.get())\n"
        "reveal_type(handle.resolve())\n"
        "reveal_type(pin([ref]))\n"
        "async def f() -> None:\n"
        "    reveal_type(await handle)\n"
    )
    out, _, _ = api.run(["--strict", "--config-file=", "--follow-imports=silent", str(source)])
    revealed = [line.split(chr(34))[1] for line in out.splitlines() if "Revealed" in line]
    assert [name.removeprefix("ray.includes.object_ref.") for name in revealed] == [
        "safe_refs.handle.SafeRef[int]",
        "int",
        "ObjectRef[int]",
        "list[safe_refs.handle.SafeRef[int]]",
        "int",
    ], out


def test_a_handle_is_no_payload() -> None:
    """Whoever loads its text or bytes, in whatever form, hears how they are read; other texts are pickle's to judge."""
    handle = SafeRef[Any](LeaseAddress("default", b"c" * 28, b"e" * 8, 1, b"l" * 16))
    loads: list[Callable[[Any], object]] = [
        safe_refs.loads,
        lambda data: safe_refs.loads_many([data]),
        lambda data: asyncio.run(aio.loads(data)),
    ]
    of_text, of_bytes = r"SafeRef.parse\(text\)", r"SafeRef.from_bytes\(data\)"
    for data, told in (
        (str(handle), of_text),
        (str(handle).encode(), r"SafeRef.parse\(data.decode\(\)\)"),
        (bytes(handle), of_bytes),
        (bytearray(bytes(handle)), of_bytes),
    ):
        more: list[Callable[[Any], object]] = [safe_refs.inspect, safe_refs.release]
        calls = loads if isinstance(data, str) else [*loads, *more]
        for call in calls:
            with pytest.raises(EnvelopeError, match=f"a SafeRef's.*{told} is the handle"):
                call(data)
    with pytest.raises(TypeError, match="bytes-like"):
        safe_refs.loads("other text")  # type: ignore[arg-type] # the point


def test_an_error_of_what_is_unpickled_is_its_own() -> None:
    """With its cause, and without a word of ours."""

    class Breaks:
        def __reduce__(self) -> Any:
            return _breaks, ()

    with pytest.raises(KeyError) as caught:
        safe_refs.loads(safe_refs.dumps(Breaks()))
    assert isinstance(caught.value.__cause__, ValueError)


def _breaks() -> None:
    try:
        raise ValueError("first")
    except ValueError as error:
        raise KeyError("then") from error
