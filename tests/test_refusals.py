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
from tests.conftest import Driver, as_actor, run_python

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
        "from safe_refs import slots\n"
        "import types, copyreg\n"
        "late = 'ray.experimental.compiled_dag_ref'\n"
        "known = sys.modules.pop(late)\n"
        "slots._waiting += ((late, slots._register_compiled_graphs),)\n"
        "slots.register(); assert late in [name for name, _ in slots._waiting]; assert late not in sys.modules\n"
        "sys.modules[late] = types.ModuleType(late)\n"
        "slots.register(); assert late in [name for name, _ in slots._waiting]\n"
        "sys.modules[late] = known\n"
        "slots.register(); assert late not in [name for name, _ in slots._waiting]\n"
        "assert known.CompiledDAGRef in copyreg.dispatch_table\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=90)


# With a Ray of its own: an older one (2.52) keeps a graph's channels in the store after the graph's end.
GRAPH = """
import asyncio, json, pickle
import ray, safe_refs
from ray.dag import InputNode
from tests.conftest import LOCAL_RAY

ray.init(**LOCAL_RAY)

@ray.remote(num_cpus=0)
class Adder:
    def add(self, number): return number + 1

def graph(**how):
    with InputNode() as number:
        return Adder.remote().add.bind(number).experimental_compile(**how)

def refused(obj):
    try:
        safe_refs.dumps(obj)
    except safe_refs.UnsupportedReferenceError as error:
        return [error.kind, error.place, str(error)]

def not_ours(ref):
    try:
        pickle.dumps(ref)
    except ValueError as error:
        return str(error)

def pinned(refs):
    try:
        safe_refs.pin(refs)
    except safe_refs.UnsupportedReferenceError as error:
        return [error.place, str(error)]

compiled = graph()
ref = compiled.execute(1)
found = [refused({"result": [ray.put(0), ref]}), refused(lambda: ref), pinned([ray.put(0), ref]), pinned(ref), not_ours(ref)]
value = ray.get(ref, timeout=20)
payload = safe_refs.dumps({"result": ray.put(value)})
found += [ray.get(safe_refs.loads(payload)["result"]), safe_refs.release(payload)]
del ref
compiled.teardown()

async def main():
    compiled = graph(enable_asyncio=True)
    future = await compiled.execute_async(5)
    found.extend([refused({"result": [future]}), not_ours(future), await asyncio.wait_for(future, 30)])
    compiled.teardown()

asyncio.run(main())
print(json.dumps([*found, safe_refs.leases()]))
"""


@pytest.mark.long
def test_results_of_a_compiled_graph_are_refused() -> None:
    """A real graph's `CompiledDAGRef` and `CompiledDAGFuture`: refused with the remedy, which works; still usable afterwards."""
    ref, closure, pinned, alone, rays, value, released, future, rays_too, later, left = run_python(GRAPH)
    module = "ray.experimental.compiled_dag_ref"
    assert ref[:2] == [f"{module}.CompiledDAGRef", "payload['result'][1]"]
    assert "ray.get it there, and pass on the value, or ray.put it" in ref[2]
    assert closure[1].startswith("payload.__")  # a global of __main__, or the closure
    assert pinned[0] == "refs[1]"
    assert "ray.get it there" in pinned[1]
    assert alone[0] == "ref"
    assert rays == "CompiledDAGRef cannot be pickled."
    assert (value, released) == (2, 1)
    assert future[:2] == [f"{module}.CompiledDAGFuture", "payload['result'][0]"]
    assert "await it there" in future[2]
    assert rays_too == "CompiledDAGFuture cannot be pickled."
    assert later == 6
    assert left == []


# The smallest transport that there can be, over the record that Ray passes along: it needs no tensors and no GPU, only Ray's way.
TRANSPORT = """
import dataclasses, os
import numpy
from ray.experimental import CommunicatorMetadata, TensorTransportManager, TensorTransportMetadata, register_tensor_transport

@dataclasses.dataclass
class Record(TensorTransportMetadata):
    data: bytes = b""

class Inline(TensorTransportManager):
    def tensor_transport_backend(self): return "inline"
    @staticmethod
    def is_one_sided(): return True
    @staticmethod
    def can_abort_transport(): return False
    def actor_has_tensor_transport(self, actor): return True
    def extract_tensor_transport_metadata(self, obj_id, arrays):
        meta = [(each.shape, each.dtype) for each in arrays]
        return Record(tensor_meta=meta, tensor_device="cpu", data=pickle.dumps(arrays))
    def get_communicator_metadata(self, source, target, backend=None): return CommunicatorMetadata()
    def recv_multiple_tensors(self, obj_id, record, communicator, target_buffers=None): return pickle.loads(record.data)
    def send_multiple_tensors(self, tensors, record, communicator): pass
    def garbage_collect(self, obj_id, record, tensors): pass
    def abort_transport(self, obj_id, communicator): pass

register_tensor_transport("inline", ["cpu"], Inline, numpy.ndarray)

def refused(call):
    try:
        call()
    except safe_refs.UnsupportedReferenceError as error:
        return [error.kind, error.place, str(error)]

@ray.remote(num_cpus=0)
class Maker:
    @ray.method(tensor_transport="inline")
    def make(self, wait_s):
        time.sleep(wait_s)
        return numpy.arange(4)
    def pid(self): return os.getpid()
    def borrow(self, refs):
        return refused(lambda: safe_refs.dumps({"borrowed": refs}))

maker, other = Maker.remote(), Maker.remote()
made = maker.make.remote(0)
value = ray.get(made, timeout=30)
pending = maker.make.remote(1)
put = ray.put(numpy.arange(4), _tensor_transport="inline")
usual = ray.put(0)
found = {
    "made": refused(lambda: safe_refs.dumps({"batch": [usual, {"tensor": made}]})),
    "pending": refused(lambda: safe_refs.dumps([pending])),
    "put": refused(lambda: safe_refs.dumps(put)),
    "borrowed": ray.get(other.borrow.remote([made]), timeout=30),
    "pinned": refused(lambda: safe_refs.pin([usual, made])),
    "alone": refused(lambda: safe_refs.pin(made)),
    "as before": pickle.loads(pickle.dumps(made)) == made,
}
payload = safe_refs.dumps({"batch": ray.put(value)})
found["remedy"] = ray.get(safe_refs.loads(payload)["batch"], timeout=30).tolist()
safe_refs.release(payload)
found["left"] = safe_refs.leases()
ray.get(pending, timeout=30)

def ends(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False

alone = Maker.remote()
kept = alone.make.remote(0)
ray.get(kept, timeout=30)
borrowed_from, not_borrowed_from = ray.get([maker.pid.remote(), alone.pid.remote()], timeout=30)
del made, pending, maker, kept, alone
gc.collect()
deadline = time.monotonic() + 30
while not ends(not_borrowed_from):
    assert time.monotonic() < deadline
    time.sleep(0.05)
found["kept"] = not ends(borrowed_from)
print(json.dumps(found))
"""


@pytest.mark.skipif(
    not hasattr(ray.experimental, "register_tensor_transport"), reason="this Ray has no transports but those of torch"
)
def test_references_made_with_a_tensor_transport_are_refused(cluster: str, driver: Driver) -> None:
    """By an actor's method (done or not), by `ray.put`, or borrowed: refused with the remedy, which works.

    And what it is refused for: who has once borrowed such a reference keeps the actor alive that made it, for good. Should a Ray
    come that lets go of it, they could be carried.
    """
    found = driver(TRANSPORT)
    for name, place in {
        "made": "payload['batch'][1]['tensor']",
        "pending": "payload[0]",
        "put": "payload",
        "borrowed": "payload['borrowed'][0]",
        "pinned": "refs[1]",
        "alone": "ref",
    }.items():
        assert found[name][:2] == ["ray.ObjectRef", place], name
        assert "made with a tensor transport (RDT)" in found[name][2]
        assert "ray.get it" in found[name][2]
    assert found["as before"] is True
    assert found["remedy"] == [0, 1, 2, 3]
    assert found["left"] == []
    assert found["kept"] is True
