"""References go out inside any object, are held, and come back tracked."""

from __future__ import annotations

import collections
import copy
import dataclasses
import gc
import io
import pickle
import time
from typing import Any

import cloudpickle
import numpy as np
import pytest
import ray

import safe_refs
from safe_refs import _ray
from safe_refs._ray.native import core_worker
from tests.conftest import Driver, is_empty

MB = 2**20


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


def value(ref: Any) -> Any:
    return ray.get(ref, timeout=20)


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
    assert value(take_out(safe_refs.loads(payload))) == b"x" * MB
    assert value(take_out(pickle.loads(payload))) == b"x" * MB
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
    assert [value(ref) for ref in safe_refs.loads(payload)] == list(range(100))
    safe_refs.release(payload)


def test_many_threads_pickle_at_once_without_mixing_their_references(cluster: str) -> None:
    """Slots belong to the pickling of their own thread."""
    import concurrent.futures

    def one(number: int) -> bool:
        ref = ray.put(number)
        payload = safe_refs.dumps({"n": number, "ref": ref})
        loaded = safe_refs.loads(payload)
        return value(loaded["ref"]) == number and safe_refs.release(payload) == 1

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
    assert [value(ref) for ref in (before, outer, safe_refs.loads(inner), after)] == [
        "before",
        "outer",
        "inner",
        "after",
    ]
    # The class is local, so plain pickle had its try first: its lease is one of two.
    assert safe_refs.release([payload, *inner_payloads]) == 1 + len(inner_payloads)


def test_a_slot_in_the_wrong_payload_is_refused_rather_than_another_object(cluster: str) -> None:
    """Pickled bytes with a slot, moved from one payload into another, fail to load: never a different object."""
    stolen = []

    class Thief:
        def __init__(self, ref: Any) -> None:
            self.ref = ref

        def __reduce__(self) -> Any:
            stolen.append(pickle.dumps(self.ref))
            return bytes, (b"",)

    first = safe_refs.dumps([Thief(ray.put("mine"))])
    with pytest.raises(safe_refs.EnvelopeError, match="by itself"):
        pickle.loads(stolen[-1])
    second = safe_refs.dumps([ray.put("other"), OpensOnLoad(stolen[-1])])
    with pytest.raises(safe_refs.EnvelopeError, match="put together from parts"):
        safe_refs.loads(second)
    assert safe_refs.release([first, second]) >= 1


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

    assert value(add_one.remote(safe_refs.loads(payload))) == 42
    safe_refs.release(payload)


def test_release_does_not_invalidate_what_was_resolved(cluster: str) -> None:
    """A reference that somebody resolved before the release reads as long as it lives; then the object goes."""
    ref = ray.put(b"z" * MB)
    payload = safe_refs.dumps(ref)
    del ref
    mine = safe_refs.loads(payload)
    assert safe_refs.release(payload) == 1
    assert len(value(mine)) == MB
    assert _ray.store_usage().used_bytes >= MB
    del mine
    gc.collect()
    assert is_empty(within_s=2)


def test_dumps_does_not_raise_rays_count_for_the_callers_reference(cluster: str) -> None:
    """Pickling leaves Ray's own count for the caller's reference where it was."""
    ref = ray.put(b"c" * MB)
    counts = core_worker().get_all_reference_counts
    before = counts()[ref.hex().encode()]
    payloads = [safe_refs.dumps({"r": ref}) for _ in range(20)]
    deadline = time.monotonic() + 5
    # Ray takes the finished call off its own books just after it has handed over the answer.
    while (
        (now := counts()[ref.hex().encode()]) != before
        and now["local"] == before["local"]
        and time.monotonic() < deadline
    ):
        time.sleep(0)
    assert now == before
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


def test_files_hold_several_payloads_and_pickles_one_after_another(cluster: str) -> None:
    """`dump` appends, `load` reads one at a time, of both kinds, to the end of the file; plain pickle reads the same."""
    file = io.BytesIO()
    for number in range(3):
        safe_refs.dump({"n": number, "ref": ray.put(number)}, file)
        safe_refs.dump(["plain", number], file)
    gc.collect()
    for load in (safe_refs.load, pickle.load):
        file.seek(0)
        for number in range(3):
            loaded = load(file)
            assert (loaded["n"], value(loaded["ref"])) == (number, number)
            assert load(file) == ["plain", number]
        with pytest.raises(EOFError):
            load(file)
    file.seek(0)
    handles = [safe_refs.load(file, resolve=False) for _ in range(6)][::2]
    assert safe_refs.release(each["ref"] for each in handles) == 3


def test_protocol_5_buffers_travel_outside_in_both_directions(cluster: str) -> None:
    """Out-of-band buffers beside references: handed to the callback, wanted back by `loads`, also by plain `pickle.loads`."""
    array = np.arange(1000)
    buffers: list[pickle.PickleBuffer] = []
    payload = safe_refs.dumps({"a": array, "r": ray.put(7)}, protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 1
    assert len(payload) < 1000
    assert safe_refs.inspect(payload).buffers == 1
    for loads in (safe_refs.loads, pickle.loads):
        loaded = loads(payload, buffers=buffers)
        assert np.array_equal(loaded["a"], array)
        assert np.shares_memory(loaded["a"], array)
        assert value(loaded["r"]) == 7
    loaded = safe_refs.Unpickler(io.BytesIO(payload), buffers=buffers).load()
    assert np.shares_memory(loaded["a"], array)
    safe_refs.release(payload)


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
    assert value(ref) == "once"
    with pytest.raises(safe_refs.LeaseReleasedError, match="took it"):
        safe_refs.loads(payload)
    assert safe_refs.release(payload) == 0


def test_pickler_and_unpickler_hooks_work_inside_payloads(cluster: str) -> None:
    """A subclass's `persistent_id`, `reducer_override` and `dispatch_table` apply beside references, as with `pickle`."""

    class Out(safe_refs.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return "the database" if obj is db else None

        def reducer_override(self, obj: Any) -> Any:
            return (str, ("was complex",)) if isinstance(obj, complex) else NotImplemented

    class In(safe_refs.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            assert pid == "the database"
            return db

    db = object()
    for extra in (0, lambda: 5):  # with plain pickle, and by way of cloudpickle
        file = io.BytesIO()
        Out(file).dump([db, 1j, ray.put("r"), extra])
        file.seek(0)
        loaded = In(file).load()
        assert loaded[0] is db
        assert loaded[1] == "was complex"
        assert value(loaded[2]) == "r"
        assert safe_refs.release(file.getvalue()) == 1


def test_a_private_dispatch_table_still_knows_references(cluster: str) -> None:
    """With a pickler's own `dispatch_table`, which hides `copyreg`'s, references are held all the same."""
    file = io.BytesIO()
    pickler = safe_refs.Pickler(file)
    pickler.dispatch_table = {complex: lambda number: (str, (f"{number}",))}
    pickler.dump([1j, ray.put("kept")])
    gc.collect()
    assert list(pickler.dispatch_table) == [complex]
    loaded = safe_refs.loads(file.getvalue())
    assert loaded[0] == "1j"
    assert value(loaded[1]) == "kept"
    safe_refs.release(file.getvalue())


def test_something_unpicklable_beside_references_leaves_nothing_pinned(cluster: str) -> None:
    """If the object can't be pickled, `dumps` raises what pickle would, and no lease exists."""
    import threading

    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock'"):
        safe_refs.dumps([ray.put(b"x" * MB), threading.Lock()])
    assert safe_refs.leases() == []


def test_a_file_that_cannot_be_written_leaves_nothing_pinned(cluster: str) -> None:
    """If the file's `write` fails, `dump` and `Pickler.dump` end the lease that they made."""

    class Full(io.RawIOBase):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        safe_refs.dump(ray.put(1), Full())
    with pytest.raises(OSError, match="No space"):
        safe_refs.Pickler(Full()).dump(ray.put(1))
    # The clearing up is not waited for, but calls of one process arrive in order.
    assert safe_refs.leases() == []


def test_classes_and_functions_of_main_travel(cluster: str, driver: Driver) -> None:
    """Classes and lambdas of `__main__` with references in them open in another job's `__main__`, as with cloudpickle."""
    made = driver(
        """
        class Mine:
            def __init__(self, ref): self.ref = ref
            def read(self): return ray.get(self.ref, timeout=20)
        payload = safe_refs.dumps({"mine": Mine(ray.put("from main")), "call": lambda: Mine(1).ref})
        import subprocess
        code = (
            "import sys, ray, json, safe_refs;"
            "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='error');"
            "loaded = safe_refs.loads(bytes.fromhex(sys.argv[2]));"
            "ended = safe_refs.release(bytes.fromhex(sys.argv[2]));"
            "print(json.dumps([loaded['mine'].read(), loaded['call'](), ended]))"
        )
        child = [sys.executable, "-c", code, address, payload.hex()]
        print(subprocess.run(child, check=True, capture_output=True, text=True, timeout=60).stdout)
        """
    )
    assert made == ["from main", 1, 1]
