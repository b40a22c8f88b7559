"""`import safe_refs as pickle` works: without references the bytes, the signatures and the reach are pickle's and cloudpickle's."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import pickle
import subprocess
import sys
import types
from fractions import Fraction
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import safe_refs

Plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(Plain, st.integers(0, 5) | st.just(-1))
def test_objects_without_references_give_pickles_own_bytes(obj: Any, protocol: int) -> None:
    """Byte for byte what `pickle.dumps` gives, in every protocol, and both read each other."""
    data = safe_refs.dumps(obj, protocol)
    assert data == pickle.dumps(obj, protocol)
    assert safe_refs.loads(data) == pickle.loads(data) == obj
    assert safe_refs.dumps(obj) == pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)


def test_every_name_of_pickle_that_users_import_is_there() -> None:
    """The functions, classes, exceptions and constants of `pickle`'s documented interface."""
    documented = {
        "dump",
        "dumps",
        "load",
        "loads",
        "Pickler",
        "Unpickler",
        "PickleError",
        "PicklingError",
        "UnpicklingError",
    }
    for name in documented | {"HIGHEST_PROTOCOL", "DEFAULT_PROTOCOL", "PickleBuffer"}:
        assert name in safe_refs.__all__
    assert safe_refs.DEFAULT_PROTOCOL == safe_refs.HIGHEST_PROTOCOL == pickle.HIGHEST_PROTOCOL
    assert safe_refs.PicklingError is pickle.PicklingError


@pytest.mark.parametrize("name", ["dumps", "loads", "dump", "load"])
def test_signatures_take_all_that_pickles_take(name: str) -> None:
    """Each parameter of pickle's function is one of ours, of the same kind and default."""
    theirs = inspect.signature(getattr(pickle, name)).parameters
    ours = inspect.signature(getattr(safe_refs, name)).parameters
    for parameter in theirs.values():
        assert ours[parameter.name].kind == parameter.kind
        if parameter.name != "buffers":  # pickle's text says () where it means None
            assert ours[parameter.name].default == parameter.default
    for name in set(ours) - set(theirs):
        assert ours[name].kind is inspect.Parameter.KEYWORD_ONLY


def local_class() -> type:
    @dataclasses.dataclass
    class Local:
        x: int

    return Local


@pytest.mark.parametrize(
    "make",
    [
        lambda: (lambda x: x + 1)(1),
        lambda: [lambda: 7][0],
        lambda: local_class()(3),
        lambda: types.SimpleNamespace(call=lambda: 1),
        lambda: sys.stdout.__class__,
        lambda: enum.Enum("Colour", "RED GREEN"),
    ],
)
def test_what_cloudpickle_pickles_we_pickle(make: Any) -> None:
    """Lambdas, closures, local classes and the like."""
    obj = make()
    expected = cloudpickle.loads(cloudpickle.dumps(obj))
    loaded = safe_refs.loads(safe_refs.dumps(obj))
    assert type(loaded).__name__ == type(expected).__name__


def test_a_module_registered_for_pickling_by_value_is_pickled_by_value() -> None:
    """`cloudpickle.register_pickle_by_value` has its effect here too."""
    module = types.ModuleType("made_up_module")
    exec("def f(): return 42", module.__dict__)  # noqa: S102 # a module must have a function
    sys.modules["made_up_module"] = module
    cloudpickle.register_pickle_by_value(module)
    try:
        data = safe_refs.dumps({"f": module.f})
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["made_up_module"]
    assert safe_refs.loads(data)["f"]() == 42


@pytest.mark.parametrize("size", [10, 60_000, 70_000, 131_000, 140_000, 1_000_000, 4_000_000])
@pytest.mark.parametrize("kind", ["bytes", "text", "small objects"])
def test_a_class_of_main_is_found_behind_any_amount_of_data(size: int, kind: str) -> None:
    """Classes of `__main__` are pickled by value wherever they stand, also behind and between big data."""
    filler = {
        "bytes": "bytes(size)",
        "text": "'x' * size",
        "small objects": "[str(i) for i in range(size // 10)]",
    }[kind]
    code = f"""
import sys, safe_refs
class Mine:
    def __init__(self, x): self.x = x
size = {size}
for obj in ([{filler}, Mine(1)], [Mine(1), {filler}], [{filler}, [{filler}, Mine], {filler}]):
    data = safe_refs.dumps(obj)
    assert b"Mine" in data and b"__init__" in data, "pickled by name"
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr


def test_a_class_of_main_is_found_whose_module_was_named_long_before() -> None:
    """The name may stand in the pickle as a text, far before the class, which then only refers to it."""
    code = """
import safe_refs
class Mine:
    def __init__(self, x): self.x = x
for filler in (b"x" * 70_000, [str(n) for n in range(20_000)], 1 << 2_000_000):
    data = safe_refs.dumps({"module": Mine.__module__, "filler": filler, "obj": Mine(1)})
    assert b"__init__" in data, "pickled by name"
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr


def test_unpicklable_objects_raise_what_pickle_raises() -> None:
    """An object that neither pickle nor cloudpickle can do gives their error, and the next call works."""
    with pytest.raises(TypeError, match="cannot pickle"):
        safe_refs.dumps([sys._getframe()])
    assert safe_refs.loads(safe_refs.dumps([1])) == [1]


def test_an_error_in_a_users_own_reduce_passes_through() -> None:
    """Neither hidden nor tried twice."""
    calls = []

    class Fails:
        def __reduce__(self) -> Any:
            calls.append(1)
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        safe_refs.dumps([Fails()])
    assert len(calls) == 1
    assert safe_refs.loads(safe_refs.dumps([1])) == [1]


def test_pickling_within_reduce_works() -> None:
    """An object that pickles something itself while it is pickled gets its own pickler."""

    class Outer:
        def __reduce__(self) -> Any:
            return safe_refs.loads, (safe_refs.dumps(["inner", 1]),)

    assert safe_refs.loads(safe_refs.dumps([Outer(), "after"])) == [["inner", 1], "after"]


@pytest.mark.parametrize("in_band", [[False, False], [True, True], [False, True], [True, False]])
@pytest.mark.parametrize("extra", [0, lambda: 1], ids=["plain", "lambda"])
def test_the_buffer_callback_is_asked_once_about_each_buffer_in_order(in_band: list[bool], extra: Any) -> None:
    """Its answer decides, buffer by buffer, also where cloudpickle had to do the work after pickle had begun."""
    first, second = np.arange(500), np.arange(600)
    asked: list[pickle.PickleBuffer] = []

    def callback(buffer: pickle.PickleBuffer) -> bool:
        asked.append(buffer)
        return in_band[len(asked) - 1]

    data = safe_refs.dumps([first, second, extra], protocol=5, buffer_callback=callback)
    assert [memoryview(each).nbytes for each in asked] == [4000, 4800]
    outside = [each for each, inside in zip(asked, in_band, strict=True) if not inside]
    loaded = safe_refs.loads(data, buffers=outside)
    assert np.array_equal(loaded[0], first)
    assert np.array_equal(loaded[1], second)
    assert [np.shares_memory(loaded[0], first), np.shares_memory(loaded[1], second)] == [not each for each in in_band]


def test_a_buffer_that_comes_twice_is_asked_about_once_where_it_is_in_band() -> None:
    """As with pickle; the buffers behind it stay the ones that they are."""
    small, third, fourth = (pickle.PickleBuffer(data) for data in (b"small", b"3" * 100, b"4" * 100))
    for module in (pickle, safe_refs):
        outside: list[pickle.PickleBuffer] = []
        asked: list[int] = []

        def callback(buffer: pickle.PickleBuffer, asked: list[int] = asked, out: list[Any] = outside) -> bool:
            asked.append(buffer.raw().nbytes)
            if asked[-1] >= 50:
                out.append(buffer)
            return asked[-1] < 50

        data = module.dumps([small, small, third, fourth], protocol=5, buffer_callback=callback)
        loaded = module.loads(data, buffers=outside)
        assert [bytes(each) for each in loaded] == [b"small", b"small", b"3" * 100, b"4" * 100]
        assert asked == [5, 100, 100]


def test_a_buffer_callback_needs_protocol_5() -> None:
    """As with pickle; with no protocol named, ours is 5 already."""
    with pytest.raises(ValueError, match="protocol"):
        safe_refs.dumps([1], protocol=4, buffer_callback=lambda buffer: None)
    assert safe_refs.loads(safe_refs.dumps([1], buffer_callback=lambda buffer: None)) == [1]


def test_arrays_of_any_layout_come_back(tmp_path: Any) -> None:
    """Contiguous, Fortran-ordered, sliced, read-only and empty arrays, in `dumps` and in `dump`."""
    base = np.arange(120_000.0).reshape(300, 400)
    frozen = base.copy()
    frozen.flags.writeable = False
    for array in (base, np.asfortranarray(base), base.T, base[::2, ::3], frozen, np.empty((0, 3))):
        loaded = safe_refs.loads(safe_refs.dumps(array))
        assert np.array_equal(loaded, array)
        path = tmp_path / "array"
        with path.open("wb") as file:
            safe_refs.dump(array, file)
            safe_refs.Pickler(file).dump(array)
        with path.open("rb") as file:
            assert np.array_equal(safe_refs.load(file), array)
            assert np.array_equal(pickle.load(file), array)


def test_terms_of_an_object_without_references_are_checked_all_the_same() -> None:
    """A wrong ttl is an error today, not on the day that the object first holds a reference."""
    with pytest.raises(ValueError, match="ttl must be more than 0"):
        safe_refs.dumps([1], ttl=-1)
    with pytest.raises(TypeError, match="uses must be a whole number"):
        safe_refs.dumps([1], uses=1.5)  # type: ignore[arg-type] # the point
    with pytest.raises(ValueError, match="label must be text"):
        safe_refs.dumps([1], label="\udcff")
    with pytest.raises(TypeError, match="label must be a string"):
        safe_refs.dumps([1], label=b"x")  # type: ignore[arg-type] # the point


def test_importing_and_using_it_without_references_imports_no_ray() -> None:
    """A gateway that carries plain objects and looks at payloads never pays for Ray."""
    code = """
import sys, safe_refs
safe_refs.loads(safe_refs.dumps({"a": [1, 2]}))
safe_refs.inspect(safe_refs.dumps(1))
assert "ray" not in sys.modules and "cloudpickle" not in sys.modules, "imported"
assert "asyncio" not in sys.modules and "safe_refs.registry.calls" not in sys.modules, "imported"
safe_refs.dumps(lambda: 1)
assert "ray" not in sys.modules
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("what", ["None", "mock.MagicMock()", "types.ModuleType('ray')"])
def test_a_stand_in_for_ray_is_not_taken_for_it(what: str) -> None:
    """Tests of programs put one, or None, into `sys.modules`; plain data, classes and functions go as without Ray."""
    code = f"""
import sys, types
from unittest import mock
import safe_refs
sys.modules["ray"] = {what}
class Mine: pass
for obj in ([1], Mine(), lambda: 1):
    assert type(safe_refs.loads(safe_refs.dumps(obj))) is type(obj)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr


def test_it_may_take_the_place_of_pickles_own_functions() -> None:
    """A program sets `pickle.dumps` and the others to ours, for a library that pickles by that module."""
    code = """
import asyncio, io, pickle
import cloudpickle, safe_refs, safe_refs.aio
for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
    setattr(pickle, name, getattr(safe_refs, name))
class Mine: pass
for obj in ([1], Mine(), lambda: 1):
    file = io.BytesIO()
    pickle.Pickler(file).dump(obj)
    pickle.dump(obj, file)
    file.seek(0)
    loaded = [pickle.Unpickler(file).load(), pickle.load(file), pickle.loads(pickle.dumps(obj))]
    loaded += safe_refs.loads_many(safe_refs.dumps_many([obj]))
    loaded.append(asyncio.run(safe_refs.aio.loads(asyncio.run(safe_refs.aio.dumps(obj)))))
    assert all(type(each) is type(obj) for each in loaded)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr


def test_fractions_and_other_reduced_objects_do_not_need_cloudpickle() -> None:
    """Objects of importable classes are pickled by plain pickle, which is several times faster."""
    code = """
import sys, safe_refs
from fractions import Fraction
safe_refs.dumps([Fraction(1, 3)] * 10)
assert "cloudpickle" not in sys.modules
print("done")
"""
    assert Fraction(1, 3) == safe_refs.loads(safe_refs.dumps(Fraction(1, 3)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr
