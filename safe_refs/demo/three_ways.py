"""Part 1: three ways to pickle references, side by side, on the same objects.

Each way has two processes (actors) of its own: a maker, which puts the objects, pickles their references and then drops them, and a
taker, which loads them. What a way leaves behind goes with its maker, so that the next one starts from an empty store.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import lifetimes, pickling
from .._ray import store
from .figures import Way
from .files import File

WAYS = ("pickle", "ray.cloudpickle", "safe_refs")
STEPS = 6  # of each way, for whoever shows progress

_CALL_TIMEOUT_S = 60.0
_GET_TIMEOUT_S = 3.0
# Ray frees what nobody needs within about a second; what is still there after two and a half stays.
_FREED_S = 2.5
_ENDED_TIMEOUT_S = 15.0


class Pickled(NamedTuple):
    """What a maker answers.

    Attributes:
        payloads: a pickled reference for each object; empty if Ray refused.
        digests: SHA-256 of each object.
        refused: whether Ray refused.
    """

    payloads: list[bytes]
    digests: list[bytes]
    refused: bool


class Maker:
    """The actor that has the objects."""

    def __init__(self) -> None:
        self._refs: list[Any] = []

    def make(self, way: str, paths: Sequence[str]) -> Pickled:
        """Put files into the store and pickle their references."""
        import ray

        digests = []
        for path in paths:
            data = Path(path).read_bytes()
            digests.append(hashlib.sha256(data).digest())
            self._refs.append(ray.put(data))
        try:
            return Pickled([_dumps(way)(ref) for ref in self._refs], digests, False)
        except ray.exceptions.RayError as error:
            # Its name is misspelt (OufOfBand...), which some release may mend.
            if "OfBandObjectRefSerialization" not in type(error).__name__:
                raise
            return Pickled([], digests, True)

    def drop(self) -> None:
        """Drop all references."""
        self._refs.clear()


class Taker:
    """The actor that loads what the maker pickled."""

    def take(self, way: str, pickled: Pickled) -> int:
        """Load references, fetch their values, and drop both; how many values came, and were right."""
        import ray

        deadline = time.monotonic() + _GET_TIMEOUT_S
        right = 0
        for payload, digest in zip(pickled.payloads, pickled.digests, strict=not pickled.refused):
            ref = _loads(way)(payload)
            try:
                # A reference that nobody knows makes ray.get wait for as long as it is let.
                data = ray.get(ref, timeout=max(deadline - time.monotonic(), 0.1))
            except ray.exceptions.RayError:
                continue
            right += hashlib.sha256(data).digest() == digest
        return right


def run(files: Sequence[File], progress: Callable[[str], None]) -> tuple[Way, ...]:
    """Try all ways on the same files; `progress` is called with the way before each of its `STEPS`."""
    return tuple(_try(way, [file.path for file in files], progress) for way in WAYS)


def _try(way: str, paths: list[str], progress: Callable[[str], None]) -> Way:
    import ray

    before = _used()
    progress(way)
    # No CPUs: they hardly compute, and may sit on a machine whose CPUs are all taken.
    maker: Any = ray.remote(num_cpus=0)(Maker).remote()
    taker: Any = ray.remote(num_cpus=0)(Taker).remote()
    try:
        pickled = ray.get(maker.make.remote(way, paths), timeout=_CALL_TIMEOUT_S)
        pickled_bytes = _used()
        progress(way)
        ray.get(maker.drop.remote(), timeout=_CALL_TIMEOUT_S)
        maker_dropped = _used_when_freed(before)
        progress(way)
        came_back = ray.get(taker.take.remote(way, pickled), timeout=_CALL_TIMEOUT_S)
        progress(way)
        all_dropped = _used_when_freed(before)
        progress(way)
        released = None
        if way == "safe_refs":
            lifetimes.release(pickled.payloads)
            released = _used_when_freed(before)
    finally:
        for actor in (maker, taker):
            ray.kill(actor)
    progress(way)
    maker_ended = store.wait_for_store(before, _ENDED_TIMEOUT_S).used_bytes
    return Way(
        way=way,
        refused=pickled.refused,
        objects=len(paths),
        came_back=came_back,
        before_bytes=before,
        pickled_bytes=pickled_bytes,
        maker_dropped_bytes=maker_dropped,
        all_dropped_bytes=all_dropped,
        released_bytes=released,
        maker_ended_bytes=maker_ended,
        leftover_bytes=(all_dropped if released is None else released) - before,
    )


def _used() -> int:
    return store.store_usage().used_bytes


def _used_when_freed(before: int) -> int:
    """What the store holds once it has had the time to free what nobody needs."""
    return store.wait_for_store(before, _FREED_S).used_bytes


def _dumps(way: str) -> Callable[[Any], bytes]:
    import pickle

    import ray.cloudpickle

    dumps: dict[str, Callable[[Any], bytes]] = {
        "pickle": pickle.dumps,
        "ray.cloudpickle": ray.cloudpickle.dumps,
        "safe_refs": pickling.dumps,
    }
    return dumps[way]


def _loads(way: str) -> Callable[[bytes], Any]:
    import pickle

    import ray.cloudpickle

    loads: dict[str, Callable[[bytes], Any]] = {
        "pickle": pickle.loads,
        "ray.cloudpickle": ray.cloudpickle.loads,
        "safe_refs": pickling.loads,
    }
    return loads[way]
