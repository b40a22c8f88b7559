"""What a `Pickler` remembers from one dump to the next."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import safe_refs


def test_a_pickler_remembers_what_it_has_dumped() -> None:
    """As pickle's own: by name and by value, one `Unpickler` loads all in order, and gives the same object; until `clear_memo`."""
    file = io.BytesIO()
    pickler = safe_refs.Pickler(file)
    shared, local = ["shared"], [lambda: 1]
    starts = []
    for obj in (shared, [shared, 1], local, [shared, local], [local]):
        starts.append(file.tell())
        pickler.dump(obj)
    assert starts[2] - starts[1] < 25
    for unpickler in (safe_refs.Unpickler(io.BytesIO(file.getvalue())), pickle.Unpickler(io.BytesIO(file.getvalue()))):
        first, second, third, fourth, fifth = (unpickler.load() for _ in starts)
        assert second[0] is first
        assert fourth[0] == first
        assert fourth[1] is third
        assert fifth[0] is third
    pickler.clear_memo()
    start = file.tell()
    pickler.dump(shared)
    assert pickle.loads(file.getvalue()[start:]) == shared


def test_after_a_dump_that_failed_a_pickler_remembers_what_was_written() -> None:
    """What was not written is not referred to, whether pickling failed or the file."""

    class Full(io.BytesIO):
        is_full = False

        def write(self, data: Any) -> int:
            if self.is_full:
                raise OSError("No space left on device")
            return super().write(data)

    file = Full()
    pickler = safe_refs.Pickler(file)
    first, second, third = ["first"], ["second"], ["third"]
    pickler.dump(first)
    with pytest.raises(TypeError):
        pickler.dump([second, threading.Lock()])
    file.is_full = True
    with pytest.raises(OSError, match="No space"):
        pickler.dump([third, first])
    file.is_full = False
    pickler.dump([first, second, third])
    unpickler = pickle.Unpickler(io.BytesIO(file.getvalue()))
    loaded = unpickler.load()
    again = unpickler.load()
    assert again == [first, second, third]
    assert again[0] is loaded


def test_many_dumps_of_one_pickler_cost_the_same_each() -> None:
    """However much it remembers already."""
    pickler = safe_refs.Pickler(io.BytesIO())
    kept = [[number] for number in range(200_000)]
    pickler.dump(kept)
    few, many = ([[str(number)] for number in range(count)] for count in (500, 2000))
    took = []
    for objs in (few, many):
        start = time.perf_counter()
        for obj in objs:
            pickler.dump(obj)
        took.append((time.perf_counter() - start) / len(objs))
    assert took[1] < 3 * took[0]
    assert took[1] < 0.001


def test_a_class_of_main_is_found_when_the_memo_has_its_modules_name() -> None:
    """The name stands in an earlier dump; a class that comes later is pickled by value all the same."""
    code = """if True:
        import io, json, pickle, sys, safe_refs
        class Item: pass
        file = io.BytesIO()
        pickler = safe_refs.Pickler(file)
        pickler.dump(__name__)
        pickler.dump(Item())
        print(file.getvalue().hex())
    """
    data = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    unpickler = pickle.Unpickler(io.BytesIO(bytes.fromhex(data)))
    assert unpickler.load() == "__main__"
    assert type(unpickler.load()).__name__ == "Item"
