"""Picklers inside picklers: what an object pickles by itself, while safe_refs pickles it, belongs to the lease around it.

Both positions of Ray's switch against out-of-band serialization (`RAY_allow_out_of_band_object_ref_serialization`) are tried, each
in a driver of its own, as Ray reads it when it is imported.
"""

from __future__ import annotations

import copy
import pickle
import threading
import zlib
from typing import Any

import pytest
import ray

import safe_refs
from tests.support.parcels import PICKLERS, SWITCHED, Kept, Squeezed
from tests.support.processes import Driver, run_python
from tests.support.store import is_empty
from tests.support.values import MB

Program = Any


@pytest.fixture(params=[pytest.param("0", marks=pytest.mark.long), "1"])
def switched(cluster: str, request: pytest.FixtureRequest) -> Program:
    """Runs code as another driver, with Ray's switch in one of its positions."""
    return lambda code: run_python(SWITCHED + code, cluster, request.param)


def test_what_an_object_pickles_inside_itself_belongs_to_the_lease(switched: Program) -> None:
    """With any pickler, in `__getstate__` or `__reduce__`: one lease, which alone keeps objects and actors, until it is released."""
    seen = switched(
        """
seen = {}
keeper = Keeper.remote("an actor's")
for pickler in PICKLERS:
    for make in (State, Reduced):
        with safe_refs.scope():
            payload = safe_refs.dumps([make({"image": ray.put(bytes(1_000_000))}, pickler), make(keeper, pickler)])
            gc.collect()
            time.sleep(0.2)  # what the lease did not hold would be gone
            loaded = safe_refs.loads(payload)
            leases = sorted(each.references for each in safe_refs.leases(sizes=False))
            seen[f"{pickler} {make.__name__}"] = [
                safe_refs.inspect(payload).kinds, len(ray.get(loaded[0].inside["image"], timeout=20)), values(loaded[1]), leases
            ]
        seen[f"{pickler} {make.__name__}"].append(safe_refs.stats().live_leases)
del loaded, keeper
gc.collect()
print(json.dumps([seen, store.left(15)]))
        """
    )
    in_the_lease = ["oa", 1_000_000, "an actor's", [2], 0]
    # A nested `dumps` makes a payload of its own, with a lease of its own.
    nested = ["", 1_000_000, "an actor's", [1, 1], 0]
    for name, found in seen[0].items():
        if name.startswith("safe_refs"):
            assert found == nested, name
        else:
            assert found == in_the_lease, name
    assert seen[1] == ""


def test_a_checkpoint_that_keeps_pickled_references_leaves_nothing_behind(switched: Program) -> None:
    """After Ray issue 34197: a checkpoint's references, pickled by `ray.cloudpickle` again and again, end with their payloads."""
    seen = switched(
        """
class Checkpoint:
    def __init__(self, data): self.data = data
    def __getstate__(self): return {"bytes": ray.cloudpickle.dumps(self.data)}
    def __setstate__(self, state): self.data = ray.cloudpickle.loads(state["bytes"])

for _ in range(20):
    payload = safe_refs.dumps(Checkpoint({"model": ray.put(bytes(500_000))}), ttl=90)
    assert len(ray.get(safe_refs.loads(payload, take=True).data["model"], timeout=20)) == 500_000
gc.collect()
print(json.dumps([safe_refs.stats().live_leases, store.left(15)]))
        """
    )
    assert seen == [0, ""]


def test_rays_own_serialization_inside_ours_is_left_alone(switched: Program) -> None:
    """A `__reduce__` may call `ray.put` or a task with references: those are Ray's, and the lease holds what these calls return."""
    seen = switched(
        """
payload = safe_refs.dumps([Stored(ray.put(b"a" * 300_000)), Sent(ray.put("b")), Stored(Keeper.remote("c")), ray.put("d")], ttl=90)
gc.collect()
time.sleep(1)  # Ray frees what nobody holds once a second
kinds = safe_refs.inspect(payload).kinds
found = values(safe_refs.loads(payload, take=True))
gc.collect()
print(json.dumps([kinds, len(found[0]), found[1:], store.left(15)]))
        """
    )
    assert seen == ["oooo", 300_000, ["b", "c", "d"], ""]


@pytest.mark.long
def test_functions_that_ray_exports_inside_our_pickling_are_left_alone(cluster: str) -> None:
    """A function that holds a reference: Ray pins it for good where the switch allows that, and refuses it by name where not."""
    seen = [
        run_python(
            SWITCHED
            + """
def dumps_and_loads():
    return values(safe_refs.loads(safe_refs.dumps(Exported(ray.put("held")), ttl=60), take=True))
print(json.dumps(error_of(dumps_and_loads)))
        """,
            cluster,
            switch,
        )
        for switch in "01"
    ]
    assert seen[0].startswith("OufOfBandObjectRefSerializationException")
    assert seen[1] == "none: 'held'"


def test_after_another_init_rays_reducers_are_seen_to_again(cluster: str) -> None:
    """Ray registers its own reducers anew after each `ray.init`; what `ray.cloudpickle` writes inside still belongs to the lease."""
    seen = run_python(
        SWITCHED
        + """
kinds = []
for _ in range(2):
    payload = safe_refs.dumps(State(ray.put(1), "ray.cloudpickle"), ttl=60)
    kinds.append(safe_refs.inspect(payload).kinds)
    safe_refs.release(payload)
    ray.shutdown()
    ray.init(address=address, log_to_driver=False, logging_level="error")
print(json.dumps(kinds))
        """,
        cluster,
        "1",
    )
    assert seen == ["o", "o"]


def test_outside_of_our_pickling_rays_cloudpickle_is_as_it_was(cluster: str) -> None:
    """Under the switch, Ray refuses what `ray.cloudpickle` pickles out of band, before and after a `dumps` of ours."""
    ref = ray.put(1)
    safe_refs.release(safe_refs.dumps([ref]))
    with pytest.raises(ray.exceptions.OufOfBandObjectRefSerializationException):
        ray.cloudpickle.dumps(ref)  # type: ignore[no-untyped-call] # Ray leaves it untyped


@pytest.mark.parametrize("pickler", [each for each in PICKLERS if each != "safe_refs"])
def test_bytes_from_inside_a_payload_can_be_opened_later(cluster: str, driver: Driver, pickler: str) -> None:
    """In a process that has loaded the payload, in any thread; they say how the lease ended; elsewhere they are refused by name."""
    payload = safe_refs.dumps(Kept([ray.put("first"), ray.put("second")], pickler), ttl=90)
    seen = driver(
        """
        import threading
        from tests.support.parcels import error_of
        payload = bytes.fromhex(args[0])
        kept, handles = safe_refs.loads(payload), safe_refs.loads(payload, resolve=False)
        seen = {"handles": [each.get() for each in handles.opened()]}
        kept = safe_refs.loads(payload)
        seen["here"] = ray.get(kept.opened())
        def work():
            seen["thread"] = ray.get(kept.opened())
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        safe_refs.release(payload)
        seen["released"] = error_of(kept.opened)
        ray.shutdown()
        seen["no ray"] = error_of(kept.opened)
        print(json.dumps({**seen, "data": kept.data.hex()}))
        """,
        payload.hex(),
    )
    assert seen["handles"] == seen["here"] == seen["thread"] == ["first", "second"]
    assert "LeaseReleasedError" in seen["released"]
    assert "RegistryUnavailableError" in seen["no ray"]
    other = driver(
        """
        from tests.support.parcels import error_of
        print(json.dumps(error_of(lambda: pickle.loads(bytes.fromhex(args[0])))))
        """,
        seen["data"],
    )
    assert other.startswith("EnvelopeError")
    assert "loads()" in other


def test_the_writer_can_open_the_bytes_that_it_kept(cluster: str) -> None:
    """An object that keeps what it pickled of itself opens that in the process that made the payload, too."""
    kept = Kept([ray.put("mine")], "ray.cloudpickle")
    payload = safe_refs.dumps(kept, ttl=60)
    assert ray.get(kept.opened()) == ["mine"]
    safe_refs.release(payload)
    with pytest.raises(safe_refs.LeaseReleasedError):
        kept.opened()


def test_what_is_opened_later_counts_as_one_use(cluster: str) -> None:
    """However many references the bytes hold, and however often they are opened."""
    payload = safe_refs.dumps(Kept([ray.put("a"), ray.put("b")], "pickle"), uses=3)
    loaded = safe_refs.loads(payload)
    for _ in range(3):
        assert ray.get(loaded.opened()) == ["a", "b"]
    assert safe_refs.leases()[0].uses_left == 1
    safe_refs.release(payload)


@pytest.mark.parametrize("kind", [Kept, Squeezed])
@pytest.mark.parametrize("pickler", PICKLERS)
def test_an_object_that_pickles_its_inside_only_once_keeps_its_lease(
    cluster: str, pickler: str, kind: type[Kept]
) -> None:
    """Where plain pickle fails after it, and the object is pickled once more: its bytes still belong to a lease that lives."""
    payload = safe_refs.dumps(
        [kind([ray.put("x" * MB)], pickler), lambda: 0], ttl=60
    )  # plain pickle can't pickle the function
    loaded = safe_refs.loads(payload)[0]
    leases = safe_refs.leases()
    assert ray.get(loaded.opened()[0]) == "x" * MB
    assert [each.references for each in leases] == [1]
    safe_refs.shutdown()
    del loaded
    assert is_empty(15)


def test_what_an_attempt_by_value_met_in_vain_is_not_held(script: Program) -> None:
    """A class of the script that uses a reference, and a lock, which can't go by value: its name is written, and nothing is held."""
    found = script(
        """
import threading
USED, LOCK = ray.put("used"), threading.Lock()
class Item:
    def use(self): return USED, LOCK
data = safe_refs.dumps(Item())
print(json.dumps([safe_refs.envelope.is_payload(data), type(safe_refs.loads(data)) is Item, len(safe_refs.leases())]))
        """
    )
    assert found == [False, True, 0]


class Compressed:
    """Pickles its inside once and compresses it, so that nobody sees what is in there."""

    def __init__(self, inside: Any, dumps: Any) -> None:
        self.inside, self.dumps, self.data = inside, dumps, b""

    def __reduce__(self) -> Any:
        self.data = self.data or zlib.compress(self.dumps(self.inside))
        return opened_from, (self.data,)


def opened_from(data: bytes) -> Any:
    """What was inside."""
    return safe_refs.loads(zlib.decompress(data))


@pytest.mark.parametrize("dumps", [pickle.dumps, ray.cloudpickle.dumps, safe_refs.dumps])
def test_what_is_pickled_once_and_out_of_sight_keeps_its_lease(cluster: str, dumps: Any) -> None:
    """The bytes don't show what is in them, and the object gives them once more where plain pickle fails after it."""
    payload = safe_refs.dumps([Compressed([ray.put("x" * MB)], dumps), lambda: 0], ttl=60)
    assert [each.references for each in safe_refs.leases()] == [1]
    loaded = safe_refs.loads(payload)[0]
    assert ray.get(loaded[0]) == "x" * MB
    safe_refs.shutdown()
    del loaded
    assert is_empty(15)


class Copies:
    """Copies and re-opens its references in the middle of being pickled, and makes and opens payloads of its own."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        assert copy.deepcopy([self.ref]) == [self.ref]
        for module in (pickle, ray.cloudpickle):
            assert module.loads(module.dumps(self.ref)) == self.ref
        payload = safe_refs.dumps(self.ref)
        assert safe_refs.loads(payload, take=True) == self.ref
        return Opens, (safe_refs.dumps({"again": self.ref}, ttl=60),)


class Opens:
    """Loads and dumps in the middle of being loaded."""

    def __init__(self, payload: bytes) -> None:
        self.ref = safe_refs.loads(payload, take=True)["again"]
        assert safe_refs.loads(safe_refs.dumps([self.ref]), take=True) == [self.ref]


def test_dumps_and_loads_in_the_middle_of_each_other(cluster: str) -> None:
    """Each payload has its own references; what was opened goes with whoever opened it."""
    ref = ray.put("v")
    payload = safe_refs.dumps([ref, Copies(ref), ref])
    first, opened, last = safe_refs.loads(payload, take=True)
    assert first == opened.ref == last == ref
    assert safe_refs.leases() == []


class Endless:
    """Pickles itself, in order to pickle itself."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        return bytes, (safe_refs.dumps(self),)


def test_an_object_that_pickles_itself_fails_and_leaves_nothing(cluster: str) -> None:
    """As with `pickle`: too deep a recursion."""
    with pytest.raises(RecursionError):
        safe_refs.dumps([ray.put(1), Endless(ray.put(2))])
    assert safe_refs.leases() == []


class Threaded:
    """Has a thread pickle its reference."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref
        self.errors: list[BaseException] = []

    def __reduce__(self) -> Any:
        def work() -> None:
            try:
                pickle.dumps(self.ref)
                safe_refs.release(safe_refs.dumps(self.ref))
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return list, ()


def test_a_thread_started_inside_has_nothing_to_do_with_the_payload(cluster: str) -> None:
    """What other threads pickle meanwhile is theirs."""
    threaded = Threaded(ray.put(1))
    payload = safe_refs.dumps([ray.put(2), threaded])
    assert threaded.errors == []
    assert safe_refs.inspect(payload).kinds == "o"
    safe_refs.release(payload)
