"""What went wrong in pickling, or could have: each test is an attack that once got through, or nearly."""

from __future__ import annotations

import array
import asyncio
import copy
import gc
import io
import math
import os
import pickle
import threading
import time
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import ray

import safe_refs
import safe_refs.aio
from safe_refs import envelope, terms
from safe_refs.envelope import Header, LeaseAddress
from tests.support.values import MB
from tests.support.waiting import wait_until

ADDRESS = LeaseAddress("default", bytes(range(28)), b"epoch..1", 3, bytes(range(16)))


@pytest.mark.parametrize(
    "table", [{}, defaultdict(lambda: None, {}), types.MappingProxyType({})], ids=["dict", "default", "proxy"]
)
def test_a_dispatch_table_on_the_class_still_knows_references(cluster: str, table: Any) -> None:
    """A class attribute hides the C pickler's own table: references are held all the same, not written as bare ids."""

    class Mine(safe_refs.Pickler):
        dispatch_table = table

    if isinstance(table, defaultdict):
        table.default_factory = None
    file = io.BytesIO()
    Mine(file).dump([ray.put(b"x" * MB)])
    gc.collect()
    assert len(safe_refs.inspect(file.getvalue()).handles) == 1
    assert ray.get(safe_refs.loads(file.getvalue())[0], timeout=20) == b"x" * MB
    safe_refs.release(file.getvalue())


def test_a_dispatch_table_that_makes_its_entries_is_asked(cluster: str) -> None:
    """A mapping with `__missing__` works as it does with pickle, references included."""

    class Table(dict[type, Any]):
        def __missing__(self, kind: type) -> Any:
            if kind is complex:
                return lambda number: (str, ("complex",))
            raise KeyError(kind)

    file = io.BytesIO()
    pickler = safe_refs.Pickler(file)
    pickler.dispatch_table = Table()
    pickler.dump([1j, ray.put(1)])
    loaded = safe_refs.loads(file.getvalue())
    assert loaded[0] == "complex"
    assert ray.get(loaded[1], timeout=20) == 1
    safe_refs.release(file.getvalue())


def test_a_buffer_that_is_used_again_while_pickling_is_pickled_as_it_was() -> None:
    """`__reduce_ex__` may hand out a scratch buffer and write to it again for the next object, as with pickle."""
    scratch = bytearray(100_000)

    class Chunk:
        def __init__(self, fill: int) -> None:
            self.fill = fill

        def __reduce_ex__(self, protocol: Any) -> Any:
            scratch[:] = bytes([self.fill]) * len(scratch)
            return bytes, (pickle.PickleBuffer(scratch),)

    first, second = safe_refs.loads(safe_refs.dumps([Chunk(1), Chunk(2)]))
    assert (first[0], second[0]) == (1, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"b": 1_500_000_000},
        {"b": 2**63},
        {"b": -1},
        {"b": True},
        {"n": -1},
        {"n": 2**60},
        {"g": True},
        {"g": -1},
        {"K": b""},
        {"e": b""},
        {"i": b"short"},
        {"x": b""},
        {"r": 5},
        {"m": math.nan},
        {"m": 5},
        {"k": 7},
        {"t": {"ttl": "soon"}},
        {"t": [1]},
    ],
    ids=str,
)
def test_forged_headers_are_refused_quickly_whatever_they_claim(changes: dict[str, Any]) -> None:
    """A header with a right checksum and a field that makes no sense is an `EnvelopeError`, and costs no memory."""
    fields = {"v": 1, **envelope.pack_address(ADDRESS), "x": b"tag-tag-", "k": "o", "m": 1.0, "n": 2, **changes}
    sealed = envelope.seal(fields)
    body = sealed + b"N."
    data = envelope.PREFIX + len(body).to_bytes(8, "little") + body + b"\x85R."
    started = time.monotonic()
    for read in (safe_refs.inspect, safe_refs.release, lambda data: safe_refs.loads(data, resolve=False)):
        with pytest.raises(safe_refs.EnvelopeError):
            read(data)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("slot", [-1, True, "0"])
def test_forged_handles_are_refused(slot: Any) -> None:
    """A handle with a slot that can't be is no handle."""
    sealed = envelope.seal({"v": 1, **envelope.pack_address(ADDRESS), "s": slot, "k": "o"})
    with pytest.raises(safe_refs.EnvelopeError):
        safe_refs.SafeRef.from_bytes(b"SREF" + sealed)


def test_leases_made_while_pickling_end_with_an_attempt_that_came_to_nothing(cluster: str) -> None:
    """A `__reduce__` that calls `dumps` may be called twice, or in vain: no lease is left that nobody knows."""

    class Nested:
        def __init__(self) -> None:
            self.ref = ray.put(1)

        def __reduce__(self) -> Any:
            return safe_refs.loads, (safe_refs.dumps(self.ref),)

    with pytest.raises(TypeError, match="cannot pickle"):
        safe_refs.dumps([Nested(), threading.Lock()])
    assert safe_refs.leases() == []
    data = safe_refs.dumps([Nested(), lambda: 0])  # pickle has its try, then cloudpickle
    assert len(safe_refs.leases()) == 1
    assert ray.get(safe_refs.loads(data)[0], timeout=20) == 1
    safe_refs.release(leases_ids())


class Nesting:
    """Its `__reduce__` makes a payload of its own, of whatever it was given."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return safe_refs.loads, (safe_refs.dumps(self.value),)


@pytest.mark.parametrize("way", ["dumps", "dumps_many", "aio", "Pickler"])
@pytest.mark.parametrize("why", ["no owner", "terms", "third"])
def test_leases_made_while_pickling_end_with_what_is_around_them(cluster: str, way: str, why: str) -> None:
    """However late the outer call fails: as a reference has no owner, as its terms are none, or two picklings further out."""
    ref = ray.put(1)
    inner: Any = Nesting(ref)
    ttl = None
    obj = [inner, ref]
    if why == "no owner":
        obj = [inner, ray.ObjectRef(os.urandom(28))]
    elif why == "terms":
        ttl = -1
    else:
        obj = [Nesting([inner]), threading.Lock()]  # what is in the middle holds no references itself
    ways: dict[str, Callable[[], Any]] = {
        "dumps": lambda: safe_refs.dumps(obj, ttl=ttl),
        "dumps_many": lambda: safe_refs.dumps_many([[ref], obj, [inner, ref]], ttl=ttl),
        "aio": lambda: asyncio.run(safe_refs.aio.dumps(obj, ttl=ttl)),
        "Pickler": lambda: safe_refs.Pickler(io.BytesIO(), ttl=ttl).dump(obj),
    }
    with pytest.raises((safe_refs.UnsupportedReferenceError, ValueError, TypeError)):
        ways[way]()
    wait_until(lambda: safe_refs.leases() == [], 10)


def test_a_destructor_may_end_a_lease_wherever_it_runs(cluster: str) -> None:
    """Inside the bookkeeping of scopes as well: the same thread is in it already."""
    payload = safe_refs.dumps(ray.put(1))
    ended: list[int] = []

    class Scope(terms.Surrounding):
        def forget(self, registry: str, leases: Any) -> None:
            if not ended:
                ended.append(0)
                ended.append(safe_refs.release(payload))

        def note(self, registry: str, lease: bytes) -> bool:
            return False

    scope = Scope()
    terms.opened(scope)
    try:
        assert safe_refs.release(safe_refs.dumps(ray.put(2))) == 1
    finally:
        terms.closed(scope)
    assert ended == [0, 1]


def leases_ids() -> list[str]:
    """Full ids of the live leases, which only the registry itself can tell."""
    actor: Any = ray.get_actor("registry:default", namespace="safe_refs")
    ids: list[str] = ray.get(actor.__ray_call__.remote(lambda shard: [lease.hex() for lease in shard.table.live]))
    return ids


def test_pickling_works_while_another_thread_imports_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is only half there has registered nothing."""
    monkeypatch.setitem(__import__("sys").modules, "cloudpickle", types.ModuleType("cloudpickle"))
    assert safe_refs.loads(safe_refs.dumps({1: 2})) == {1: 2}


def test_a_getstate_that_copies_its_references_is_pickled(cluster: str) -> None:
    """`copy` asks the same reducers as pickle: what it copies while we pickle is a reference still."""

    class Copies:
        def __init__(self, ref: Any) -> None:
            self.ref = ref

        def __getstate__(self) -> Any:
            return copy.deepcopy(self.__dict__)

    payload = safe_refs.dumps([Copies(ray.put("copied")), ray.put("other")])
    gc.collect()
    assert ray.get(safe_refs.loads(payload)[0].ref, timeout=20) == "copied"
    safe_refs.release(payload)


def test_a_slot_of_another_payload_never_gives_a_reference_of_this_one(cluster: str) -> None:
    """Bytes pickled for an earlier payload and kept by an object ask the earlier lease, and say so when that has ended."""

    class Caches:
        kept: bytes | None = None

        def __init__(self, ref: Any) -> None:
            self.ref = ref

        def __reduce__(self) -> Any:
            Caches.kept = Caches.kept or pickle.dumps(self.ref)
            return pickle.loads, (Caches.kept,)

    mine, other = Caches(ray.put("mine")), ray.put("other")
    first = safe_refs.dumps([mine])
    second = safe_refs.dumps([mine, other])
    assert ray.get(safe_refs.loads(second), timeout=20) == ["mine", "other"]
    safe_refs.release(first)
    with pytest.raises(safe_refs.LeaseReleasedError):
        safe_refs.loads(second)
    safe_refs.release(second)


def test_a_persistent_id_set_on_the_pickler_itself_works_by_way_of_cloudpickle_too(cluster: str) -> None:
    """Hooks may be attributes of the object as well as methods of its class."""
    error = ValueError(1)
    file = io.BytesIO()
    pickler = safe_refs.Pickler(file)
    pickler.persistent_id = lambda obj: "the error" if obj is error else None  # type: ignore[method-assign] # the point
    pickler.dump([error, lambda: 0])

    class In(safe_refs.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return pid

    assert In(io.BytesIO(file.getvalue())).load()[0] == "the error"


def test_a_reference_of_unknown_owner_is_refused_by_name(cluster: str) -> None:
    """A reference made from a bare id, as plain pickle makes them in another process, can't be held by anybody: it says so."""

    @ray.remote(num_cpus=0)
    def try_it(bare: bytes) -> str:
        try:
            safe_refs.dumps(pickle.loads(bare))
        except safe_refs.UnsupportedReferenceError as error:
            return str(error)
        return "no error"

    ref = ray.put(1)
    assert "does not know the owner" in ray.get(try_it.remote(pickle.dumps(ref)), timeout=60)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_every_protocol_are_known_as_such(protocol: int) -> None:
    """`release` and `inspect` take whatever `dumps` gave."""
    objects: tuple[Any, ...] = (5, 1.5, "x", 3000, -70000, 10**6, None, True, [], {}, (), b"b", 10**40, {1: [2]})
    for obj in objects:
        data = safe_refs.dumps(obj, protocol)
        assert safe_refs.inspect(data).lease_id is None
        assert safe_refs.release(data) == 0


def test_release_of_nested_and_endless_lists(cluster: str) -> None:
    """Lists in lists are fine, a list in itself is a `TypeError`; any buffer of bytes is a payload."""
    payloads = [safe_refs.dumps(ray.put(n)) for n in range(3)]
    nested: Any = [payloads[0], [[payloads[1]]], array.array("B", payloads[2])]
    assert safe_refs.release(nested) == 3
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="nested so deep"):
        safe_refs.release(endless)


def test_no_repr_shows_a_whole_id() -> None:
    """Logs and tracebacks print what they like."""
    header = Header(ADDRESS, b"tag-tag-", "o", {}, 1.0, 2, 0, signed=False)
    data = envelope.wrap(header, [b"N."])
    for thing in (ADDRESS, header, safe_refs.inspect(data), envelope.find(data)):
        assert ADDRESS.lease.hex() not in repr(thing)
        assert repr(ADDRESS.lease)[2:-1] not in repr(thing)
