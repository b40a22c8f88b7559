"""Files, buffers, hooks and failures of picklers, with references beside them."""

from __future__ import annotations

import gc
import io
import pickle
from typing import Any

import numpy as np
import pytest
import ray

import safe_refs
from tests.support.processes import Driver
from tests.support.values import MB, got


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
            assert (loaded["n"], got(loaded["ref"])) == (number, number)
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
        assert got(loaded["r"]) == 7
    loaded = safe_refs.Unpickler(io.BytesIO(payload), buffers=buffers).load()
    assert np.shares_memory(loaded["a"], array)
    safe_refs.release(payload)


@pytest.mark.parametrize("protocol", range(6))
def test_an_unpickler_reads_payloads_of_every_protocol(cluster: str, protocol: int) -> None:
    """Up to protocol 2 a pickle calls `builtins` as Python 2 did, also where it stands in a payload, which is a newer pickle."""
    obj = [bytearray(b"a"), range(3), {4}, ray.put(7)]
    payload = safe_refs.dumps(obj, protocol)
    for data in (payload, safe_refs.dumps(obj[:3], protocol)):
        assert safe_refs.load(io.BytesIO(data))[:3] == obj[:3]
    unpickler = safe_refs.Unpickler(io.BytesIO(payload + pickle.dumps(range(2), 4)))
    assert got(unpickler.load()[3]) == 7
    assert unpickler.load() == range(2)
    safe_refs.release(payload)


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
        assert got(loaded[2]) == "r"
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
    assert got(loaded[1]) == "kept"
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


def test_payloads_of_one_pickler_stand_by_themselves(cluster: str) -> None:
    """Whatever the pickler remembers: each payload opens by itself, with any pickler, and after the others have been released."""
    file = io.BytesIO()
    pickler = safe_refs.Pickler(file)
    ref, shared = ray.put("v"), ["shared"]
    starts = []
    for obj in (shared, [shared, ref], [shared, ref], shared, [shared, ref, lambda: 1], shared):
        starts.append(file.tell())
        pickler.dump(obj)
    data = file.getvalue()
    unpickler = pickle.Unpickler(io.BytesIO(data))
    loaded = [unpickler.load() for _ in starts]
    assert [each[0] for each in loaded] == ["shared", shared, shared, "shared", shared, "shared"]
    assert loaded[0] is loaded[3] is loaded[5]
    payloads = [data[starts[number] : starts[number + 1]] for number in (1, 2, 4)]
    assert [pickle.loads(each)[0] for each in payloads] == [shared] * 3
    assert safe_refs.release(payloads[0]) == 1
    assert ray.get(safe_refs.loads(payloads[1])[1], timeout=20) == "v"
    assert safe_refs.release(payloads) == 2


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
