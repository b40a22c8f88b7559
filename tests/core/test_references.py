"""References go out inside any object, are held, and come back tracked."""

from __future__ import annotations

import collections
import copy
import dataclasses
import gc
import pickle
from typing import Any

import cloudpickle
import numpy as np
import pytest
import ray

import safe_refs
from safe_refs._ray import native, store
from tests.support.processes import Driver
from tests.support.store import is_empty
from tests.support.values import MB, got
from tests.support.waiting import wait_until


@dataclasses.dataclass
class Row:
    name: str
    ref: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    refs: tuple[Any, ...]


class WithReduce:
    """Pickles itself by a `__reduce__` of its own, as many libraries' classes do."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        return WithReduce, (self.ref,)


class WithState:
    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __getstate__(self) -> Any:
        return {"kept": self.ref}

    def __setstate__(self, state: Any) -> None:
        self.ref = state["kept"]


class InnerPickle:
    """Keeps a part of its state as bytes pickled by itself, and opens them at once when it is loaded."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        return open_inner, (pickle.dumps({"ref": self.ref}),)


def open_inner(data: bytes) -> InnerPickle:
    return InnerPickle(pickle.loads(data)["ref"])


Pair = collections.namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("put_in", "take_out"),
    [
        (lambda ref: ref, lambda obj: obj),
        (lambda ref: [[[ref]]], lambda obj: obj[0][0][0]),
        (lambda ref: {"a": (1, {"b": ref})}, lambda obj: obj["a"][1]["b"]),
        (lambda ref: {ref: "as a key"}, lambda obj: next(iter(obj))),
        (lambda ref: {ref, 1}, lambda obj: next(each for each in obj if each != 1)),
        (lambda ref: Row("x", ref), lambda obj: obj.ref),
        (lambda ref: Frozen((ref, ref)), lambda obj: obj.refs[1]),
        (lambda ref: Pair(1, ref), lambda obj: obj.right),
        (lambda ref: collections.deque([ref]), lambda obj: obj[0]),
        (lambda ref: collections.OrderedDict(a=ref), lambda obj: obj["a"]),
        (WithReduce, lambda obj: obj.ref),
        (WithState, lambda obj: obj.ref),
        (InnerPickle, lambda obj: obj.ref),
        (lambda ref: lambda: ref, lambda obj: obj()),
        (lambda ref: np.array([ref, None], dtype=object), lambda obj: obj[0]),
        (lambda ref: ValueError("carries", ref), lambda obj: obj.args[1]),
    ],
    ids=[
        *("bare", "lists", "dicts", "key", "set", "dataclass", "frozen", "namedtuple", "deque", "ordereddict"),
        *("reduce", "setstate", "inner-pickle", "closure", "array", "exception"),
    ],
)
def test_a_reference_anywhere_in_an_object_comes_back(cluster: str, put_in: Any, take_out: Any) -> None:
    """Wherever a reference stands in an object, the lease keeps its value, and loading gives a reference that reads it."""
    payload = safe_refs.dumps(put_in(ray.put(b"x" * MB)))
    gc.collect()
    assert got(take_out(safe_refs.loads(payload))) == b"x" * MB
    assert got(take_out(pickle.loads(payload))) == b"x" * MB
    assert safe_refs.release(payload) == 1


def test_the_same_reference_many_times_is_one_slot_and_comes_back_as_one_object(cluster: str) -> None:
    """Equal references, be they one Python object or several, share a slot and come back identical."""
    ref = ray.put(b"v")
    twin = copy.copy(ref)
    assert twin is not ref
    payload = safe_refs.dumps([ref, ref, twin, {"again": ref}])
    info = safe_refs.inspect(payload)
    assert len(info.handles) == 1
    first, second, third, last = safe_refs.loads(payload)
    assert first is second is third is last["again"]
    assert first == ref
    safe_refs.release(payload)


def test_one_payload_is_one_lease_and_one_call(cluster: str) -> None:
    """However many references a payload has, the registry is asked once and holds one lease."""
    safe_refs.init()
    before = safe_refs.stats()
    payload = safe_refs.dumps([ray.put(i) for i in range(100)])
    after = safe_refs.stats()
    assert before is not None
    assert after is not None
    assert after.pinned - before.pinned == 1
    assert after.live_leases - before.live_leases == 1
    assert after.live_references - before.live_references == 100
    assert [got(ref) for ref in safe_refs.loads(payload)] == list(range(100))
    safe_refs.release(payload)


def test_many_threads_pickle_at_once_without_mixing_their_references(cluster: str) -> None:
    """Slots belong to the pickling of their own thread."""
    import concurrent.futures

    def one(number: int) -> bool:
        ref = ray.put(number)
        payload = safe_refs.dumps({"n": number, "ref": ref})
        loaded = safe_refs.loads(payload)
        return got(loaded["ref"]) == number and safe_refs.release(payload) == 1

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, range(64)))


def test_pickling_inside_pickling_keeps_its_own_references(cluster: str) -> None:
    """An object whose `__reduce__` makes a payload of its own gets a lease of its own; neither loses a reference."""
    inner_payloads = []

    class Nested:
        def __init__(self, ref: Any, other: Any) -> None:
            self.ref, self.other = ref, other

        def __reduce__(self) -> Any:
            inner_payloads.append(safe_refs.dumps(self.other))
            return tuple, ([self.ref, inner_payloads[-1]],)

    payload = safe_refs.dumps([ray.put("before"), Nested(ray.put("outer"), ray.put("inner")), ray.put("after")])
    gc.collect()
    before, (outer, inner), after = safe_refs.loads(payload)
    assert [got(ref) for ref in (before, outer, safe_refs.loads(inner), after)] == [
        "before",
        "outer",
        "inner",
        "after",
    ]
    # The class is local, so plain pickle had its try first: its lease is one of two.
    assert safe_refs.release([payload, *inner_payloads]) == 1 + len(inner_payloads)


def test_a_slot_in_the_wrong_payload_is_refused_rather_than_another_object(cluster: str, driver: Driver) -> None:
    """Pickled bytes with a slot, moved from one payload into another: never a different object.

    A process that opened, or made, the payload that they come from gets the right one, for as long as that lives. Others are refused.
    """
    stolen = []

    class Thief:
        def __init__(self, ref: Any) -> None:
            self.ref = ref

        def __reduce__(self) -> Any:
            stolen.append(pickle.dumps(self.ref))
            return bytes, (b"",)

    first = safe_refs.dumps([Thief(ray.put("mine"))])
    assert ray.get(pickle.loads(stolen[-1])) == "mine"
    second = safe_refs.dumps([ray.put("other"), OpensOnLoad(stolen[-1])])
    assert ray.get(safe_refs.loads(second)) == ["other", "mine"]
    refused = driver(
        """
        def error_of(call, data):
            try:
                return repr(call(data))
            except safe_refs.EnvelopeError as error:
                return str(error)
        bare, whole = map(bytes.fromhex, args)
        print(json.dumps([error_of(pickle.loads, bare), error_of(safe_refs.loads, whole)]))
        """,
        stolen[-1].hex(),
        second.hex(),
    )
    assert "by itself" in refused[0]
    assert "put together from parts" in refused[1]
    safe_refs.release(first)
    with pytest.raises(safe_refs.LeaseReleasedError):
        safe_refs.loads(second)
    assert safe_refs.release([first, second]) == 1


class OpensOnLoad:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return pickle.loads, (self.data,)


def test_other_picklers_see_a_reference_as_they_did_before(cluster: str) -> None:
    """`import safe_refs` changes nothing for `pickle`, `cloudpickle` and `copy` used by others in the same process."""
    ref = ray.put(1)
    safe_refs.dumps({})
    for dumps in (pickle.dumps, cloudpickle.dumps):
        data = dumps(ref)
        assert b"safe_refs" not in data
        assert pickle.loads(data) == ref
    assert copy.deepcopy([ref])[0] == ref


def test_references_pass_in_band_through_ray_as_before(cluster: str) -> None:
    """Ray's own passing of references, also of ones that a payload gave back, is untouched."""
    payload = safe_refs.dumps([ray.put(41)])

    @ray.remote
    def add_one(refs: list[Any]) -> Any:
        return ray.get(refs[0]) + 1

    assert got(add_one.remote(safe_refs.loads(payload))) == 42
    safe_refs.release(payload)


def test_release_does_not_invalidate_what_was_resolved(cluster: str) -> None:
    """A reference that somebody resolved before the release reads as long as it lives; then the object goes."""
    ref = ray.put(b"z" * MB)
    payload = safe_refs.dumps(ref)
    del ref
    mine = safe_refs.loads(payload)
    assert safe_refs.release(payload) == 1
    assert len(got(mine)) == MB
    assert store.store_usage().used_bytes >= MB
    del mine
    gc.collect()
    assert is_empty(within_s=2)


def test_dumps_does_not_raise_rays_count_for_the_callers_reference(cluster: str) -> None:
    """Pickling leaves Ray's own count for the caller's reference where it was."""
    ref = ray.put(b"c" * MB)
    counts = native.core_worker().get_all_reference_counts
    before = counts()[ref.hex().encode()]
    payloads = [safe_refs.dumps({"r": ref}) for _ in range(20)]
    assert counts()[ref.hex().encode()]["local"] == before["local"]
    # Ray takes the finished call off its own books just after it has handed over the answer.
    wait_until(lambda: counts()[ref.hex().encode()] == before, 5)
    assert safe_refs.release(payloads) == 20


def test_a_lease_alone_keeps_the_object(cluster: str, driver: Driver) -> None:
    """With every reference gone but the lease's, another job's driver still gets the value; after release the store is empty."""
    payload = safe_refs.dumps(ray.put(b"k" * MB))
    gc.collect()
    got = driver(
        """
        payload = bytes.fromhex(args[0])
        value = ray.get(safe_refs.loads(payload), timeout=20)
        print(json.dumps([len(value), safe_refs.release(payload), ray.get_runtime_context().get_job_id()]))
        """,
        payload.hex(),
    )
    assert got[:2] == [MB, 1]
    assert got[2] != ray.get_runtime_context().get_job_id()
    assert is_empty(within_s=2)


def test_handles_stand_for_references_without_asking_the_registry(cluster: str) -> None:
    """`resolve=False` gives `SafeRef`s, costs no call, and they resolve one by one."""
    payload = safe_refs.dumps({"a": ray.put("A"), "b": [ray.put("B")]})
    before = safe_refs.stats()
    loaded = safe_refs.loads(payload, resolve=False)
    assert safe_refs.stats() is not None
    assert before is not None
    assert safe_refs.stats().resolved == before.resolved  # type: ignore[union-attr] # just checked
    assert (loaded["a"].get(20), loaded["b"][0].get(20)) == ("A", "B")
    assert loaded["a"].slot == 0
    safe_refs.release(payload)


def test_take_resolves_and_ends_the_lease_in_one_step(cluster: str) -> None:
    """After `take=True` the references are good and the payload is not."""
    payload = safe_refs.dumps(ray.put("once"))
    ref = safe_refs.loads(payload, take=True)
    assert got(ref) == "once"
    with pytest.raises(safe_refs.LeaseReleasedError, match="took it"):
        safe_refs.loads(payload)
    assert safe_refs.release(payload) == 0
