"""What a user sees of the library by `dir`, `help`, `repr` and `python -m`: the face, all of it, and nothing else."""

from __future__ import annotations

import asyncio
import io
import pydoc
import re
import subprocess
import sys
import types
from collections.abc import Callable

import safe_refs
from safe_refs import aio, envelope, scopes
from safe_refs.envelope import Header, LeaseAddress

ADDRESS = LeaseAddress("default", bytes(range(28)), b"epoch..1", 3, bytes(range(16)))
PAYLOAD = envelope.wrap(
    Header(ADDRESS, b"tag-tag-", "oa", {"ttl": 60.0, "label": "job 7"}, 1.0, 2, 0, signed=False), [b"N."]
)
INFO = safe_refs.LeaseInfo(
    4, "00010203", "job 7", 3.14159, 56.85, 1, 2, 4096, "01000000", "ab" * 28, 4711, "work.py:3 in make"
)
INFO_TEXT = (
    "<LeaseInfo 00010203 'job 7', 2 reference(s) to 4096 bytes, 3.1 s old, expires in 56.9 s, 1 use(s) left, "
    "by pid 4711 on node abababab, job 01000000 (work.py:3 in make)>"
)
STATS = safe_refs.RegistryStats("default", 1, 12.5, 3, 5, 10, 12, 6, 1, 0, 0, 7, shards=2, replicas=2)
STATS_TEXT = (
    "<RegistryStats 'default': 3 live lease(s) with 5 reference(s), pinned 10, resolved 12, released 6, expired 1, "
    "2 shards, 2 replica(s), up for 12.5 s>"
)

# What each class of the face shows of itself: a sample, and its `repr`. None where it is `pickle`'s own, or a table of many lines.
SHOWN: dict[str, list[tuple[Callable[[], object], str]]] = {
    "SafeRef": [
        (lambda: safe_refs.SafeRef(ADDRESS, 1), "<SafeRef 00010203[1]>"),
        (lambda: safe_refs.inspect(PAYLOAD).handles[1], "<SafeRef 00010203[1] of an actor>"),
    ],
    "PayloadInfo": [
        (
            lambda: safe_refs.inspect(PAYLOAD),
            f"<PayloadInfo lease 00010203 of registry 'default', 2 reference(s), {len(PAYLOAD)} bytes, ttl=60.0, label='job 7'>",
        ),
        (lambda: safe_refs.inspect(safe_refs.dumps(1)), "<PayloadInfo no lease, 5 bytes>"),
    ],
    "LeaseInfo": [(lambda: INFO, INFO_TEXT)],
    "RegistryStats": [(lambda: STATS, STATS_TEXT)],
    "Settings": [],  # tests/core/test_settings.py has its table
    "Pickler": [
        (lambda: safe_refs.Pickler(io.BytesIO(), ttl=60), "<Pickler to BytesIO, protocol 5, ttl=60>"),
        (lambda: safe_refs.Pickler.__new__(safe_refs.Pickler), "<Pickler, not initialized>"),
    ],
    "Unpickler": [
        (
            lambda: safe_refs.Unpickler(io.BytesIO(), take=True),
            "<Unpickler, resolve=True, take=True>",
        ),
        (lambda: safe_refs.Unpickler.__new__(safe_refs.Unpickler), "<Unpickler, not initialized>"),
    ],
    "scope": [
        (lambda: safe_refs.scope(label="job 7", ttl=60), "<scope not entered, label 'job 7', ttl 60 s>"),
        (lambda: safe_refs.scope().__enter__(), "<scope with 0 lease(s)>"),
    ],
    "keepalive": [(lambda: scopes.KeepAlive([ADDRESS], 60), "<keepalive of 1 lease(s), ttl 60 s, not renewing>")],
    "pipeline": [(safe_refs.pipeline, "<pipeline not entered>")],
}


def test_every_public_object_shows_what_matters() -> None:
    """In one line, with short ids only. The list covers every class, and every context manager, of the face."""
    of_pickle = {"PickleBuffer", "PickleError", "PicklingError", "UnpicklingError"}
    classes = {
        name
        for name in safe_refs.__all__
        if isinstance(getattr(safe_refs, name), type) and not issubclass(getattr(safe_refs, name), Exception)
    }
    assert set(SHOWN) == (classes - of_pickle) | {"scope", "keepalive", "pipeline"}
    for samples in SHOWN.values():
        for make, text in samples:
            thing = make()
            assert repr(thing) == text
            assert ADDRESS.lease.hex() not in text
            assert "\n" not in text
            if isinstance(thing, scopes.Scope) and thing.is_open:
                thing.__exit__(None, None, None)
                assert repr(thing) == "<scope closed>"


def test_a_subclass_shows_its_own_name() -> None:
    """Of whatever users derive from ours."""

    class Mine(safe_refs.Pickler):
        pass

    assert repr(Mine(io.BytesIO(), 4)) == "<Mine to BytesIO, protocol 4>"


def test_dir_lists_the_face_and_nothing_else() -> None:
    """No submodule but `aio`, no name that only payloads need; what is pickle's own can be imported, and is documented there."""
    shown = {name for name in dir(safe_refs) if not name.startswith("__")}
    assert shown == {name for name in safe_refs.__all__ if not name.startswith("_")} - {
        "PickleBuffer",
        "PickleError",
        "PicklingError",
        "UnpicklingError",
    } | {"aio"}
    assert [name for name in shown if isinstance(getattr(safe_refs, name), types.ModuleType)] == ["aio"]
    assert {"__version__", "__doc__", "__all__", "__file__", "__path__"} <= set(dir(safe_refs))
    assert all(hasattr(safe_refs, name) for name in safe_refs.__all__)
    assert [name for name in dir(aio) if not name.startswith("__")] == sorted(aio.__all__)
    assert {"__doc__", "__all__", "__file__"} <= set(dir(aio))


def test_aio_is_there_without_an_import_of_its_own() -> None:
    """And costs nothing until it is used: `import safe_refs` imports no asyncio. Any other name is still a mistake."""
    code = """
import sys, safe_refs
assert "asyncio" not in sys.modules and "safe_refs.aio" not in sys.modules, "imported"
run = safe_refs.aio.dumps([1, 2])
import asyncio
print(safe_refs.loads(asyncio.run(run)), "ray" in sys.modules, hasattr(safe_refs, "aoi"))
from safe_refs import *
print(type(dumps).__name__, "aio" in globals())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split("\n")[:2] == ["[1, 2] False False", "function False"], done.stderr
    assert safe_refs.aio is aio
    assert safe_refs.aio.scope is safe_refs.scope
    assert asyncio.run(safe_refs.aio.loads(safe_refs.dumps("x"))) == "x"


def help_text() -> str:
    return pydoc.plain(pydoc.render_doc(safe_refs))


def test_help_begins_with_the_functions_and_ends_with_the_errors() -> None:
    """Its first screen has every name of the face, with a line for each: functions, then classes, then errors."""
    text = help_text()
    screen = text[: text.index("\nPACKAGE CONTENTS")]
    assert len(screen.splitlines()) <= 70
    rows = re.findall(r"^ {8}(\w+) {2,}\S", screen, re.MULTILINE)
    things = {name: getattr(safe_refs, name) for name in rows}
    kinds = [
        2 if isinstance(thing, type) and issubclass(thing, Exception) else 1 if isinstance(thing, type) else 0
        for thing in things.values()
    ]
    assert kinds == sorted(kinds)
    constants = {"DEFAULT_PROTOCOL", "HIGHEST_PROTOCOL"}
    assert set(rows) == {name for name in dir(safe_refs) if not name.startswith("__")} - constants
    assert len(rows) == len(set(rows))


def test_help_has_no_boilerplate() -> None:
    """Nothing that every exception has. All that the errors bring by themselves is there."""
    text = help_text()
    assert not re.search(r"inherited from (builtins\.|SafeRefsError)", text)
    assert "class LeaseExpiredError(LeaseError)" in text
    assert "ttl_s: the time to live that it had" in text
    assert re.search(r" of\([\s|]*lease: 'str'", text)
    # Who looks at an error itself sees everything, as with any other.
    assert {"args", "with_traceback", "lease", "ended_at"} <= set(dir(safe_refs.LeaseError("x")))


def test_python_m_is_the_command() -> None:
    """`python -m safe_refs`, with the same exit statuses."""
    for arguments, status, output in (
        (["--version"], 0, f"safe-refs {safe_refs.__version__}\n"),
        (["no-such-command"], 2, ""),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "safe_refs", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (status, output), done.stderr
