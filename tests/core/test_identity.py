"""Which class it is: what is opened is what the process knows already, and stays as it is."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import safe_refs
from safe_refs import identity
from tests.support.processes import PRELUDE, run_python


def test_loading_changes_nothing_that_the_process_knows(script: Any) -> None:
    """No attribute is set back, no `__init_subclass__` or `register` runs again, no second copy of a module's dictionary is used.

    That holds at home, and in a worker from the second time on.
    """
    code = """
import abc
registry, started = {}, []

class Plugin(abc.ABC):
    def __init_subclass__(cls):
        started.append(cls.__name__)

class Counter(Plugin):
    count = 0
    def __init__(self, ref=None):
        self.ref = ref
    def bump(self):
        Counter.count += 1
        registry["bumps"] = registry.get("bumps", 0) + 1
        return [Counter.count, registry["bumps"], len(started)]

@ray.remote(num_cpus=0)
class Worker:
    def bump(self, data):
        self.kept = safe_refs.loads(data)  # a class of which nothing is left is forgotten by the next garbage collection
        return self.kept.bump()

ref = ray.put(1)
data = safe_refs.dumps(Counter(ref), ttl=60)
method = Counter.bump
here = [safe_refs.loads(data).bump() for _ in range(3)]
worker = Worker.remote()
there = [ray.get(worker.bump.remote(data), timeout=60) for _ in range(3)]
safe_refs.release(data)
print(json.dumps([here, registry, started, Counter.bump is method, there]))
"""
    here, registry, started, same, there = script(code)
    assert here == [[1, 1, 1], [2, 2, 1], [3, 3, 1]]
    assert registry == {"bumps": 3}
    assert started == ["Counter"]
    assert same
    assert [row[:2] for row in there] == [[1, 1], [2, 2], [3, 3]]  # as it was when it was written
    assert len({row[2] for row in there}) == 1


def test_functions_of_a_script_are_the_scripts_own_again_at_home(tmp_path: Path) -> None:
    """As with plain pickle: a callback changes the script's own variables, not a copy of them. Lambdas are copies, as ever."""
    found = run_python(
        """
        import functools, json, safe_refs
        done = []
        def callback(x): done.append(x)
        @functools.lru_cache
        def cached(x): return done.append(x)
        @functools.singledispatch
        def dispatched(x): done.append(x)
        for each in (callback, cached, dispatched):
            loaded = safe_refs.loads(safe_refs.dumps({"call": each, "other": lambda: 1}))
            assert loaded["call"] is each and loaded["other"]() == 1
            loaded["call"](len(done))
        print(json.dumps(done))
        """,
        script=tmp_path / "script.py",
    )
    assert found == [0, 1, 2]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.long
def test_what_a_spawned_process_writes_opens_elsewhere(cluster: str, tmp_path: Path, method: str) -> None:
    """There the script's classes are of `__mp_main__`, which no worker can import; to the script itself they are its own."""
    code = """
import multiprocessing, typing
class Item:
    def __init__(self, number, ref=None): self.number, self.ref = number, ref
T = typing.TypeVar("T")
def helper(x): return x + 1
def produce(address, pipe, done):
    ray.init(address=address, log_to_driver=False, logging_level="error")
    item = Item(5, ray.put("value"))
    pipe.send_bytes(safe_refs.dumps({"item": item, "call": lambda: helper(1), "helper": helper, "T": T}, ttl=60))
    ours = safe_refs.loads(pipe.recv_bytes())
    pipe.send([type(ours) is Item, ours.number])
    done.wait(60)
    ray.shutdown()
if __name__ == "__main__":""" + (
        PRELUDE
        + f"""
@ray.remote(num_cpus=0)
def there(data):
    loaded = safe_refs.loads(data)
    return loaded["item"].number, loaded["call"](), loaded["helper"](2), type(loaded["T"]).__name__
context = multiprocessing.get_context({method!r})
pipe, theirs = context.Pipe()
done = context.Event()
child = context.Process(target=produce, args=(address, theirs, done))
child.start()
data = pipe.recv_bytes() if pipe.poll(60) else None
elsewhere = ray.get(there.remote(data), timeout=60)
loaded = safe_refs.loads(data)
here = [type(loaded["item"]) is Item, loaded["helper"] is helper, loaded["T"] is T, ray.get(loaded["item"].ref)]
safe_refs.release(data)
pipe.send_bytes(safe_refs.dumps(Item(7)))
in_child = pipe.recv() if pipe.poll(60) else None
done.set()
child.join(30)
print(json.dumps([elsewhere, here, in_child]))
"""
    ).replace("\n", "\n    ")
    code = "import gc, json, pickle, sys, time\nimport ray\nimport safe_refs\n" + code
    elsewhere, here, in_child = run_python(code, cluster, script=tmp_path / "script.py")
    assert elsewhere == [5, 2, 3, "TypeVar"]
    assert here == [True, True, True, "value"]
    assert in_child == [True, 7]


def test_classes_that_came_by_pypis_cloudpickle_are_the_same(script: Any) -> None:
    """What is learnt by one copy of cloudpickle is known to the other: both give a class of the script one id."""
    found = script(
        """
import cloudpickle
class One: pass
class Other: pass
first = cloudpickle.dumps(One())
data = safe_refs.dumps([One(), Other(), ray.put(1)], ttl=60)
last = cloudpickle.dumps(Other())
loaded = safe_refs.loads(data, take=True)
found = [type(loaded[0]) is One, type(loaded[1]) is Other, type(pickle.loads(first)) is One, type(pickle.loads(last)) is Other]
print(json.dumps(found))
"""
    )
    assert found == [True, True, True, True]


def test_without_ray_it_is_pypis_cloudpickle(tmp_path: Path) -> None:
    """Pickling by value imports no Ray, and opens without it; a process that has Ray knows the class by the same id."""
    data = tmp_path / "data"
    found = run_python(
        """
        import json, pathlib, sys, safe_refs
        class Item: pass
        pathlib.Path(sys.argv[1]).write_bytes(safe_refs.dumps([Item(), lambda: 1]))
        back = safe_refs.loads(pathlib.Path(sys.argv[1]).read_bytes())
        has_ray = "ray" in sys.modules
        import ray
        again = safe_refs.loads(safe_refs.dumps([Item(), lambda: 1]))
        print(json.dumps([type(back[0]) is Item, has_ray, type(again[0]) is Item]))
        """,
        str(data),
    )
    assert found == [True, False, True]
    assert b"ray.cloudpickle" not in data.read_bytes()


def test_threads_that_open_a_class_at_once_get_the_same(tmp_path: Path) -> None:
    """Each gets a class that is complete, whoever made it."""
    data = run_python(
        """
        import json, safe_refs
        class Item:
            def works(self): return True
        print(json.dumps(safe_refs.dumps([Item() for _ in range(3)]).hex()))
        """
    )
    for _ in range(20):
        start = threading.Barrier(4)
        found: list[Any] = []

        def load(start: threading.Barrier = start, found: list[Any] = found) -> None:
            start.wait(10)
            found.extend(safe_refs.loads(bytes.fromhex(data)))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(20)
        assert len(found) == 12
        assert len({type(each) for each in found}) == 1
        assert all(each.works() for each in found)
        found.clear()


def test_cloudpickles_locks_are_not_taken() -> None:
    """A signal's handler may pickle by value while its own thread has cloudpickle's lock."""
    local = type("Local", (), {})
    for copy in identity.copies():
        copy._DYNAMIC_CLASS_TRACKER_LOCK.acquire()
    try:
        data = safe_refs.dumps(local())
        assert type(safe_refs.loads(data)) is local
    finally:
        for copy in identity.copies():
            copy._DYNAMIC_CLASS_TRACKER_LOCK.release()


def test_threads_make_one_class_however_they_take_turns(tmp_path: Path) -> None:
    """Also where the interpreter changes threads at every step."""
    found = run_python(
        """
        import json, pickle, subprocess, sys, threading, safe_refs
        code = "import safe_refs; [print(safe_refs.dumps(type('Item', (), {})()).hex()) for _ in range(60)]"
        datas = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        sys.setswitchinterval(1e-6)
        split = 0
        for data in datas:
            found, start = [], threading.Barrier(5)
            def load():
                start.wait(20)
                found.append(type(safe_refs.loads(bytes.fromhex(data))))
            threads = [threading.Thread(target=load) for _ in range(5)]
            [each.start() for each in threads]
            [each.join(30) for each in threads]
            split += len(set(found)) != 1 or len(found) != 5
        print(json.dumps(split))
        """
    )
    assert found == 0


def test_classes_that_are_equal_are_not_taken_for_one_another() -> None:
    """A metaclass may say that two classes are equal."""

    class Meta(type):
        def __eq__(cls, other: object) -> bool:
            return type(other) is Meta

        def __hash__(cls) -> int:
            return 1

    cat, dog = Meta("Cat", (), {}), Meta("Dog", (), {})
    loaded = safe_refs.loads(safe_refs.dumps([cat(), dog()]))
    assert [type(each) for each in loaded] == [cat, dog]
    assert [type(each).__name__ for each in loaded] == ["Cat", "Dog"]
