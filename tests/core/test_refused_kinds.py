"""Kinds of references that Ray makes for special ends: results of compiled graphs, and tensors that a transport carries."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from tests.support.processes import Driver, run_python

# With a Ray of its own: an older one (2.52) keeps a graph's channels in the store after the graph's end.
GRAPH = """
import asyncio, json, pickle
import ray, safe_refs
from ray.dag import InputNode
from tests.support.cluster import LOCAL_RAY

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
from pathlib import Path
import numpy
from safe_refs._ray import raw
from ray.experimental import CommunicatorMetadata, TensorTransportManager, TensorTransportMetadata, register_tensor_transport
from tests.support.processes import dies, lives
from tests.support.tasks import wait_for

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
    def make(self, told):
        wait_for(told)
        return numpy.arange(4)
    def pid(self): return os.getpid()
    def borrow(self, refs):
        return refused(lambda: safe_refs.dumps({"borrowed": refs}))

maker, other = Maker.remote(), Maker.remote()
there, told = args[0], Path(args[1])
made = maker.make.remote(there)
value = ray.get(made, timeout=30)
pending = maker.make.remote(str(told))
put = ray.put(numpy.arange(4), _tensor_transport="inline")
usual = ray.put(0)
found = {
    "made": refused(lambda: safe_refs.dumps({"batch": [usual, {"tensor": made}]})),
    "pending": refused(lambda: safe_refs.dumps([pending])),
    "put": refused(lambda: safe_refs.dumps(put)),
    "borrowed": ray.get(other.borrow.remote([made]), timeout=30),
    "pinned": refused(lambda: safe_refs.pin([usual, made])),
    "alone": refused(lambda: safe_refs.pin(made)),
    "inside another": raw.stored(ray.put([made]), 10) is None,
    "as before": pickle.loads(pickle.dumps(made)) == made,
}
payload = safe_refs.dumps({"batch": ray.put(value)})
found["remedy"] = ray.get(safe_refs.loads(payload)["batch"], timeout=30).tolist()
safe_refs.release(payload)
found["left"] = safe_refs.leases()
told.touch()
ray.get(pending, timeout=30)

alone = Maker.remote()
kept = alone.make.remote(there)
ray.get(kept, timeout=30)
borrowed_from, not_borrowed_from = ray.get([maker.pid.remote(), alone.pid.remote()], timeout=30)
del made, pending, maker, kept, alone
gc.collect()
assert dies(not_borrowed_from, 30)
found["kept"] = lives(borrowed_from)
print(json.dumps(found))
"""


@pytest.mark.long
@pytest.mark.skipif(
    not hasattr(ray.experimental, "register_tensor_transport"), reason="this Ray has no transports but those of torch"
)
def test_references_made_with_a_tensor_transport_are_refused(cluster: str, driver: Driver, tmp_path: Path) -> None:
    """By an actor's method (done or not), by `ray.put`, or borrowed: refused with the remedy, which works.

    And what it is refused for: who has once borrowed such a reference keeps the actor alive that made it, for good. Should a Ray
    come that lets go of it, they could be carried.
    """
    found = driver(TRANSPORT, str(tmp_path), str(tmp_path / "told"))
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
    assert found["inside another"] is True
    assert found["as before"] is True
    assert found["remedy"] == [0, 1, 2, 3]
    assert found["left"] == []
    assert found["kept"] is True
