"""References that can't be carried are refused by a name, a place and a remedy, and leave nothing held."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import pytest
import ray

import safe_refs
from safe_refs import aio
from tests.support.cluster import as_actor

GENERATOR = "ray.ObjectRefGenerator"


class Row:
    def __init__(self, ref: Any) -> None:
        self.ref = ref


def numbers() -> Iterator[int]:
    for number in range(3):
        yield number + 1


@pytest.fixture
def generator(cluster: str) -> Any:
    """A generator of references, as a streaming task gives it."""
    made: Any = ray.remote(num_cpus=0)(numbers).remote()
    assert type(made) is ray.ObjectRefGenerator
    return made


def into_file(obj: Any, **how: Any) -> None:
    safe_refs.dump(obj, io.BytesIO(), **how)


def by_pickler(obj: Any, **how: Any) -> None:
    safe_refs.Pickler(io.BytesIO(), **how).dump(obj)


def awaited(obj: Any, **how: Any) -> None:
    asyncio.run(aio.dumps(obj, **how))


@pytest.mark.parametrize("dumps", [safe_refs.dumps, into_file, by_pickler, awaited])
@pytest.mark.parametrize("how", [{}, {"protocol": 4}, {"wait": False}, {"buffer_callback": lambda _: True}])
def test_every_way_out_names_the_place(generator: Any, dumps: Callable[..., Any], how: dict[str, Any]) -> None:
    """Through plain pickle, cloudpickle and every function: where it stands, of what kind, what to do; nothing stays held."""
    rows: list[tuple[Callable[[Any], Any], str]] = [
        (lambda it: it, "payload"),
        (lambda it: {"batch": [ray.put(1), 1, 2, Row(it)]}, "payload['batch'][3].ref"),
        (lambda it: [ray.put(1), lambda: it, it], "payload[2]"),
        (lambda it: [ray.put(1), lambda: it], "payload[1].__closure__[0].cell_contents"),
        (lambda it: lambda: it, "payload.__closure__[0].cell_contents"),
    ]
    for put_in, place in rows:
        with pytest.raises(safe_refs.UnsupportedReferenceError) as caught:
            dumps(put_in(generator), **how)
        assert (caught.value.kind, caught.value.place) == (GENERATOR, place)
        assert str(caught.value).startswith(f"{place} is a {GENERATOR}, which safe_refs can't carry: pass on the refer")
    assert safe_refs.leases() == []
    assert len(list(generator)) == 3  # and it is as it was


def test_of_many_the_one_is_named(generator: Any) -> None:
    """`dumps_many` says which object, and what was pickled before it is not held."""
    objects = [[ray.put(1)], ray.put(2), {"a": generator}]
    for dumps_many in (safe_refs.dumps_many, lambda objs: asyncio.run(aio.dumps_many(objs))):
        for given in (objects, iter(objects)):
            with pytest.raises(safe_refs.UnsupportedReferenceError) as caught:
                dumps_many(given)
            assert caught.value.place == "payloads[2]['a']"
    assert safe_refs.leases() == []


def test_pin_names_which_of_them(generator: Any) -> None:
    """`refs[3]` (or `ref` where it is only one: see below), also for what is no reference at all but of Ray's."""
    node: Any = vars(ray)["NodeID"].from_random()  # Ray's types don't know it
    for refused in (generator, node):
        with pytest.raises(safe_refs.UnsupportedReferenceError) as caught:
            safe_refs.pin([ray.put(1), ray.put(2), ray.put(3), refused])
        assert caught.value.place == "refs[3]"
    with pytest.raises(
        safe_refs.UnsupportedReferenceError, match=r"ref is a .*NodeID, which safe_refs can't pin: pin a"
    ):
        safe_refs.pin(node)
    assert safe_refs.leases() == []


def test_an_actor_that_cannot_be_made_durable_is_named(cluster: str) -> None:
    """Where copies are wanted, an actor that dies with its creator is refused: where it stands, in every function."""

    class Actor:
        pass

    actor = as_actor(Actor).remote()
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: safe_refs.dumps({"a": [ray.put(1), actor]}, durable=True), "payload['a'][1]"),
        (lambda: safe_refs.dumps_many([1, [actor]], durable=True), "payloads[1][0]"),
        (lambda: by_pickler([actor], durable=True), "payload[0]"),
        (lambda: awaited([actor], durable=True), "payload[0]"),
        (lambda: safe_refs.pin([ray.put(1), actor], durable=True), "refs[1]"),
        (lambda: safe_refs.pin(actor, durable=True), "ref"),
    ]
    for call, place in calls:
        with pytest.raises(safe_refs.UnsupportedReferenceError, match="can't be made durable") as caught:
            call()
        assert (caught.value.place, caught.value.kind) == (place, "ray.actor.ActorHandle")
    assert safe_refs.leases() == []


def test_behind_a_reduce_the_place_is_unknown_and_said_to_be(generator: Any) -> None:
    """What an object's own `__reduce__` makes up stands nowhere in it."""

    class MakesOne:
        def __reduce__(self) -> Any:
            return list, ([ray.remote(num_cpus=0)(numbers).remote()],)

    with pytest.raises(safe_refs.UnsupportedReferenceError, match=r"payload holds a .*behind a __reduce__") as caught:
        safe_refs.dumps([ray.put(1), MakesOne()])
    assert caught.value.place is None
    assert safe_refs.leases() == []


def test_a_pickling_within_names_its_own_place(generator: Any) -> None:
    """An object whose `__reduce__` calls `dumps` itself: the place is the one in what that call was given."""

    class Nested:
        def __reduce__(self) -> Any:
            return bytes, (safe_refs.dumps({"inner": generator}),)

    with pytest.raises(safe_refs.UnsupportedReferenceError) as caught:
        safe_refs.dumps(["outer", Nested()])
    assert caught.value.place == "payload['inner']"


def test_a_refusal_survives_being_pickled_before_its_place_is_known(generator: Any) -> None:
    """Code called by pickling may keep the error: the reference isn't in what is pickled of it."""
    kept = []

    class Keeps:
        def __reduce__(self) -> Any:
            try:
                pickle.dumps(generator)
            except safe_refs.UnsupportedReferenceError as error:
                kept.append(pickle.loads(pickle.dumps(error)))
            return list, ()

    assert safe_refs.loads(safe_refs.dumps(Keeps())) == []
    assert kept[0].kind == GENERATOR
    assert kept[0].place is None


def test_a_reference_without_an_owner_is_named_too(cluster: str) -> None:
    """A bare id made by plain pickle in another process is refused by the registry's side: the place is there all the same."""

    @ray.remote(num_cpus=0)
    def places(bare: bytes) -> list[str | None]:
        ref = pickle.loads(bare)
        found = []
        for call in (
            lambda: safe_refs.dumps({"a": [ray.put(1), ref]}),
            lambda: by_pickler({"a": [ref]}),
            lambda: awaited({"a": [ref]}),
            lambda: safe_refs.dumps_many([ray.put(1), {"a": ref}]),
            lambda: safe_refs.pin([ray.put(1), ref]),
            lambda: safe_refs.pin(ref),
        ):
            try:
                call()
            except safe_refs.UnsupportedReferenceError as error:
                found.append(error.place)
        return found

    ref = ray.put(1)
    assert ray.get(places.remote(pickle.dumps(ref)), timeout=60) == [
        *("payload['a'][1]", "payload['a'][0]", "payload['a'][0]", "payloads[1]['a']", "refs[1]", "ref")
    ]
    assert safe_refs.leases() == []


def test_elsewhere_a_generator_is_pickled_as_before(generator: Any) -> None:
    """While safe_refs isn't pickling, everybody gets Ray's own refusal, as without safe_refs."""
    safe_refs.dumps({})
    for call in (pickle.dumps, cloudpickle.dumps, ray.cloudpickle.dumps, copy.copy, ray.put):
        with pytest.raises(TypeError, match="Serializing a ObjectRefGenerator is not allowed"):
            call(generator)


def test_the_remedy_for_a_generator_works(generator: Any) -> None:
    """Its references, all of them or one by one."""
    first = safe_refs.dumps(next(generator))
    rest = safe_refs.dumps(list(generator))
    assert ray.get([safe_refs.loads(first), *safe_refs.loads(rest)], timeout=30) == [1, 2, 3]
    assert safe_refs.release([first, rest]) == 2


def test_no_module_of_rays_is_imported_for_a_refusal() -> None:
    """The types are known once their modules are there, and not before, also if that is late."""
    code = (
        "import sys, safe_refs; safe_refs.dumps([1]); assert 'ray' not in sys.modules\n"
        "import ray; safe_refs.dumps([1])\n"
        "from safe_refs import kinds, slots\n"
        "import types, copyreg\n"
        "late = 'ray.experimental.compiled_dag_ref'\n"
        "known = sys.modules.pop(late)\n"
        "slots.waiting += ((late, kinds._register_compiled_graphs),)\n"
        "slots.register(); assert late in [name for name, _ in slots.waiting]; assert late not in sys.modules\n"
        "sys.modules[late] = types.ModuleType(late)\n"
        "slots.register(); assert late in [name for name, _ in slots.waiting]\n"
        "sys.modules[late] = known\n"
        "slots.register(); assert late not in [name for name, _ in slots.waiting]\n"
        "assert known.CompiledDAGRef in copyreg.dispatch_table\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=90)
