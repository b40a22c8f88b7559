"""Objects that pickle what is inside them by themselves: with any pickler, by Ray's own means, now or later."""

from __future__ import annotations

import importlib
import time
import zlib
from collections.abc import Callable
from typing import Any

import ray

import safe_refs

PICKLERS = ("pickle", "cloudpickle", "ray.cloudpickle", "safe_refs")

# What a program begins with that is another driver, with Ray's switch against out-of-band serialization as its second argument says,
# in its workers too.
SWITCHED = """
import os, sys
address, switch, *args = sys.argv[1:]
os.environ["RAY_allow_out_of_band_object_ref_serialization"] = switch
import gc, json, pickle, threading, time
import ray
import safe_refs
from tests.support import store
from tests.support.parcels import *
ray.init(
    address=address, log_to_driver=False, logging_level="error",
    runtime_env={"env_vars": {"RAY_allow_out_of_band_object_ref_serialization": switch}},
)
"""


def module(name: str) -> Any:
    """A pickler's module."""
    return importlib.import_module(name)


class State:
    """Pickles its inside by the pickler of that name in `__getstate__`, and opens it in `__setstate__`."""

    def __init__(self, inside: Any, pickler: str) -> None:
        self.inside, self.pickler = inside, pickler

    def __getstate__(self) -> Any:
        return self.pickler, module(self.pickler).dumps(self.inside)

    def __setstate__(self, state: Any) -> None:
        self.pickler, data = state
        self.inside = module(self.pickler).loads(data)


class Reduced:
    """The same by `__reduce__`, as `tianshou`'s and `stable-baselines3`'s wrappers of functions might do it."""

    def __init__(self, inside: Any, pickler: str) -> None:
        self.inside, self.pickler = inside, pickler

    def __reduce__(self) -> Any:
        return open_reduced, (module(self.pickler).dumps(self.inside), self.pickler)


def open_reduced(data: bytes, pickler: str) -> Reduced:
    return Reduced(module(pickler).loads(data), pickler)


class Kept:
    """Pickles its inside once, when it is first pickled, and opens it whenever it is asked for it."""

    def __init__(self, inside: Any, pickler: str) -> None:
        self.inside, self.pickler = inside, pickler
        self.data: Any = None

    def __getstate__(self) -> Any:
        if self.data is None:
            self.data = module(self.pickler).dumps(self.inside)
        return {"data": self.data, "pickler": self.pickler}

    def opened(self) -> Any:
        """What is inside."""
        return module(self.pickler).loads(self.data)


class Squeezed(Kept):
    """Keeps its inside compressed, so that nobody can see what the bytes name."""

    def __getstate__(self) -> Any:
        if self.data is None:
            self.data = zlib.compress(module(self.pickler).dumps(self.inside))
        return {"data": self.data, "pickler": self.pickler}

    def opened(self) -> Any:
        return module(self.pickler).loads(zlib.decompress(self.data))


class Stored:
    """Puts what is inside into Ray's object store when it is pickled: Ray pickles it, in the middle of our own pickling."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __reduce__(self) -> Any:
        return open_stored, (ray.put([self.inside]),)


def open_stored(ref: Any) -> Stored:
    return Stored(ray.get(ref, timeout=20)[0])


class Sent(Stored):
    """The same by a task's argument and return value."""

    def __reduce__(self) -> Any:
        return open_stored, (wrapped.remote([self.inside]),)


class Exported(Stored):
    """The same by a function that holds what is inside, and that Ray pickles when it is called for the first time."""

    def __reduce__(self) -> Any:
        inside = self.inside

        @ray.remote(num_cpus=0)
        def wrapped_too() -> list[Any]:
            return [inside]

        return open_stored, (wrapped_too.remote(),)


@ray.remote(num_cpus=0)
def wrapped(inside: list[Any]) -> list[Any]:
    return inside


class Parcel:
    """Is pickled with its references held, whoever pickles it: Ray, too."""

    def __init__(self, inside: Any, **terms: Any) -> None:
        self.inside, self.terms = inside, {"ttl": 120, **terms}

    def __reduce__(self) -> Any:
        return open_parcel, (safe_refs.dumps(self.inside, **self.terms),)


def open_parcel(payload: bytes) -> Parcel:
    return Parcel(safe_refs.loads(payload))


class Fails:
    """Makes a lease, and then can't be pickled."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        safe_refs.dumps(self.ref)
        raise ValueError("not today")


def values(box: Any) -> Any:
    """What is in references and parcels, however deep."""
    if isinstance(box, (Parcel, State, Reduced, Stored)):
        return values(box.inside)
    if isinstance(box, ray.ObjectRef):
        return values(ray.get(box, timeout=20))
    if isinstance(box, ray.actor.ActorHandle):
        return values(ray.get(box.look.remote(), timeout=20))
    return [values(each) for each in box] if isinstance(box, list) else box


@ray.remote(num_cpus=0, max_retries=0)
def read(box: Any) -> Any:
    """`values`, after a time in which Ray frees what nobody holds."""
    time.sleep(1)
    return values(box)


@ray.remote(num_cpus=0, max_retries=0)
def give(make: Callable[[], Any]) -> Any:
    """What a function makes, as a return value."""
    return make()


@ray.remote(num_cpus=0)
class Keeper:
    """Keeps what its constructor gets."""

    def __init__(self, box: Any) -> None:
        self.box = box

    def look(self) -> Any:
        time.sleep(0.3)  # what nobody holds would be gone
        return values(self.box)

    async def now(self) -> Any:  # it makes this an asyncio actor, whose arguments are opened in an event loop
        return {"box": self.box}


def mixed() -> list[Any]:
    """References, and parcels between them, several and deep; what `values` gives for it is `MIXED`."""
    inside = ray.put(b"in" * 100_000)
    return [
        ray.put(b"before" * 50_000),
        Parcel(inside),
        ray.put("between"),
        Parcel([Parcel(Parcel(inside)), State([inside], "ray.cloudpickle")]),
        ray.put("behind"),
    ]


_IN = b"in" * 100_000
MIXED: list[Any] = [b"before" * 50_000, _IN, "between", [_IN, [_IN]], "behind"]


def error_of(call: Callable[[], Any]) -> str:
    """The class and the text of the error that a call raises."""
    try:
        return f"none: {call()!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
