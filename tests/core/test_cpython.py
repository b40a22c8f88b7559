"""CPython's own tests for its pickle module, run against `safe_refs`: what it means to be a drop-in.

Where CPython's tests and ours part, `OTHERWISE` says why, test by test.
"""

from __future__ import annotations

import io
import pickle
import sys
import unittest
from typing import Any

import pytest

import safe_refs

tester: Any = pytest.importorskip("test.pickletester", reason="this Python comes without CPython's own tests")

# What CPython tests and we decide otherwise, each with the reason.
BY_VALUE = "cloudpickle can pickle what plain pickle refuses here, so we do"
OTHERWISE = {
    "test_local_lookup_error": BY_VALUE,
    "test_unpickleable_newobj_class": BY_VALUE,
    "test_unpickleable_newobj_ex_class": BY_VALUE,
    "test_c_methods": BY_VALUE,
    "test_py_methods": BY_VALUE,
}


def failures(case: type[unittest.TestCase]) -> dict[str, str]:
    """Run a case of CPython's; the tests that fail, without those that we decide otherwise."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun > 0
    failed = {}
    for test, text in result.failures + result.errors:
        name = str(test).split(" ")[0]  # a subtest has the name of its test in front
        if name not in OTHERWISE:
            failed[name] = text
    return failed


class Dumps:
    py_version = sys.version_info
    pickler = safe_refs.Pickler
    unpickler = safe_refs.Unpickler

    def dumps(self, arg: Any, proto: int | None = None, **kwargs: Any) -> bytes:
        return safe_refs.dumps(arg, proto, **kwargs)

    def loads(self, data: bytes, **kwargs: Any) -> Any:
        return safe_refs.loads(data, **kwargs)


class Classes:
    py_version = sys.version_info
    pickler = safe_refs.Pickler
    unpickler = safe_refs.Unpickler

    def dumps(self, arg: Any, proto: int | None = None, **kwargs: Any) -> bytes:
        file = io.BytesIO()
        safe_refs.Pickler(file, proto, **kwargs).dump(arg)
        return file.getvalue()

    def loads(self, data: bytes, **kwargs: Any) -> Any:
        return safe_refs.Unpickler(io.BytesIO(data), **kwargs).load()


class Persistent:
    """With `persistent_id` and `persistent_load`, which the tests bring along as methods of their own."""

    def dumps(self, arg: Any, proto: int | None = None) -> bytes:
        case = self

        class Pickler(safe_refs.Pickler):
            def persistent_id(self, obj: Any) -> Any:
                return case.persistent_id(obj)  # type: ignore[attr-defined] # of the test

        file = io.BytesIO()
        Pickler(file, proto).dump(arg)
        return file.getvalue()

    def loads(self, data: bytes, **kwargs: Any) -> Any:
        case = self

        class Unpickler(safe_refs.Unpickler):
            def persistent_load(self, pid: Any) -> Any:
                return case.persistent_load(pid)  # type: ignore[attr-defined] # of the test

        return Unpickler(io.BytesIO(data), **kwargs).load()


class Module:
    dump = staticmethod(safe_refs.dump)
    dumps = staticmethod(safe_refs.dumps)
    load = staticmethod(safe_refs.load)
    loads = staticmethod(safe_refs.loads)
    Pickler = safe_refs.Pickler
    Unpickler = safe_refs.Unpickler


class Objects:
    pickler_class = safe_refs.Pickler
    unpickler_class = safe_refs.Unpickler


CASES = [
    ("AbstractPickleTests", Dumps),
    ("AbstractPickleTests", Classes),
    ("AbstractPicklingErrorTests", Dumps),
    ("AbstractPickleModuleTests", Module),
    ("AbstractPersistentPicklerTests", Persistent),
    ("AbstractIdentityPersistentPicklerTests", Persistent),
    ("AbstractPicklerUnpicklerObjectTests", Objects),
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "ours"), CASES, ids=[f"{name}-{ours.__name__}" for name, ours in CASES])
def test_cpythons_own_tests_pass(name: str, ours: type) -> None:
    """Each of CPython's cases passes, but for what `OTHERWISE` names."""
    theirs = getattr(tester, name, None)
    if theirs is None:
        pytest.skip(f"this Python's tests have no {name}")
    case = type(f"{name}For{ours.__name__}", (ours, theirs, unittest.TestCase), {"pickle": pickle})
    assert failures(case) == {}
