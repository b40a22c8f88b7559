"""Private calls of Ray that are other ones than safe_refs knows, as in a Ray of another version; run in a process of its own."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

import safe_refs
from safe_refs._ray import counts, native

from .actors import Owner
from .cluster import as_actor

# Those that a touch makes, and those that are asked before.
OF_TOUCH = (
    "get_all_reference_counts",
    "serialize_object_ref",
    "remove_object_ref_reference",
    "add_object_ref_reference",
    "deserialize_and_register_object_ref",
)
CALLS = (*OF_TOUCH, "get_owner_address", "current_actor_is_asyncio", "current_actor_max_concurrency")


class Changed:
    """Ray's core worker with one call that is another one.

    Args:
        core: the real one.
        name: of the call.
        how: what it is now; None: it is missing.
        when: which calls of it are another one, by their number from 0.
    """

    def __init__(
        self, core: Any, name: str, how: Callable[..., Any] | None, when: Callable[[int], bool] = lambda _: True
    ) -> None:
        self._core, self._name, self._how, self._when, self._made = core, name, how, when, itertools.count()

    def __getattr__(self, name: str) -> Any:
        if name == self._name and self._how is None:
            raise AttributeError(f"'CoreWorker' object has no attribute {name!r}")
        real = getattr(self._core, name)

        def call(*args: Any) -> Any:
            made = next(self._made)
            return self._how(*args) if self._how is not None and self._when(made) else real(*args)

        call.__name__ = name
        return call if name == self._name else real


def fails(*_: Any) -> Any:
    raise RuntimeError("this call is deprecated")


def takes_more(first: Any, /, *, scope: str) -> Any:
    """Has another signature, so that a call raises TypeError."""


def does_nothing(*_: Any) -> None:
    """Has the same name and signature, and does something else."""


WAYS: dict[str, Callable[..., Any] | None] = {
    "is missing": None,
    "fails": fails,
    "has another signature": takes_more,
    "does nothing": does_nothing,
}


class Warned(logging.Handler):
    """What safe_refs warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _replace(core_worker: Callable[[], Any], connected: Callable[[], Any]) -> None:
    vars(counts).update(core_worker=core_worker, connected=connected)


@contextmanager
def changed(core: Any) -> Iterator[Warned]:
    """Within the block, this process has that core worker as far as `counts` knows."""
    was = vars(counts)["core_worker"], vars(counts)["connected"]
    _replace(lambda: core, lambda: core)
    warned = Warned()
    logging.getLogger("safe_refs").addHandler(warned)
    logging.getLogger("safe_refs").filters.clear()
    try:
        yield warned
    finally:
        logging.getLogger("safe_refs").removeHandler(warned)
        _replace(*was)
        counts._fault = None


def _counted(refs: list[Any]) -> list[Any]:
    gc.collect()
    found = native.core_worker().get_all_reference_counts()
    return [found[ref.hex().encode()]["local"] for ref in refs]


def _tries(refs: list[Any], warned: Warned) -> dict[str, Any]:
    """Pin borrowed references twice; what shows of it."""
    before = _counted(refs)
    payloads: list[bytes] = []
    depends: list[bool] = []
    for target in (
        refs,
        refs[0],
    ):  # each is looked at at once: a moment later the registry may know that the owner knows it
        payloads.append(safe_refs.dumps(target))
        depends += [bool(lease.depends_on) for lease in safe_refs.leases()][len(depends) :]
    loaded = len(safe_refs.loads(payloads[0]))
    safe_refs.release(payloads)
    after = _counted(refs)
    return {
        "read": ray.get(refs, timeout=10),
        "counts": after == before,
        "depends": depends,
        "loaded": loaded,
        "warned": warned.lines,
    }


def _borrowed(registry: str) -> list[Any]:
    """An owner, and two references that it owns; this process counts each twice."""
    os.environ["SAFE_REFS_REGISTRY"] = registry
    owner = as_actor(Owner).remote()
    refs = ray.get(owner.put.remote(1, 2), timeout=60)
    again.extend(ray.ObjectRef(ref.binary()) for ref in refs)
    safe_refs.release(safe_refs.dumps(refs))
    return [owner, *refs]


again: list[Any] = []


def before_a_touch(registry: str) -> None:
    """Print what comes of each call that is another one from the start, in each way."""
    _, *refs = owner_and_refs = _borrowed(registry)
    core = native.core_worker()
    found: dict[str, Any] = {}
    for name in CALLS:
        for way, how in WAYS.items():
            counts._fault = None
            with changed(Changed(core, name, how)) as warned:
                found[f"{name} {way}"] = _tries(refs, warned)
    del owner_and_refs
    print(json.dumps(found))


def in_a_touch(registry: str) -> None:
    """Print what comes of each call that becomes another one in the middle of a touch: for ever, or once."""
    _, *refs = owner_and_refs = _borrowed(registry)
    core = native.core_worker()
    found: dict[str, Any] = {}
    for name in OF_TOUCH:
        for often in ("once", "for ever"):
            for first in range(2 if name in (*OF_TOUCH[:2], OF_TOUCH[-1]) else 4):
                if often == "once" and name in OF_TOUCH[first:2]:
                    continue  # before anything is touched: a signal handler could have raised that
                if often == "for ever" and name == OF_TOUCH[-1]:
                    continue  # Ray learns by this one call only who owns what it has forgotten
                when = partial(operator.eq if often == "once" else operator.le, first)
                with changed(Changed(core, name, fails, when)) as warned:
                    counts._fault = ""
                    before = _counted(refs)
                    touched = [each.name for each in counts.touch_zero(refs)]
                    found[f"{name} {first} {often}"] = {
                        "touched": touched,
                        "same": _counted(refs) == before,
                        **_tries(refs, warned),
                    }
    del owner_and_refs
    print(json.dumps(found))


def in_a_shards_touch(registry: str) -> None:
    """Print what comes of each call that fails in the middle of a shard's touch, of an object of which it has one reference."""
    from safe_refs.anchoring import relays

    os.environ["SAFE_REFS_REGISTRY"] = registry
    owner = as_actor(Owner).remote()
    refs = ray.get(owner.put.remote(1, 2), timeout=60)
    safe_refs.release(safe_refs.dumps(refs))
    core = native.core_worker()
    relay = relays.Relays().handle(relays.FOR_CLIENTS[1])
    found: dict[str, Any] = {}
    for name in OF_TOUCH[1:4]:
        for first in range(2):
            ray.get(relay.hold.remote(b"12345678", refs, []), timeout=60)  # somebody else must have them
            with changed(Changed(core, name, fails, partial(operator.le, first))) as warned:
                counts._fault = ""
                touched = {each.name for each in counts.touch_held(refs)}
            found[f"{name} {first}"] = {
                "touched": sorted(touched),
                "read": ray.get(refs, timeout=10),
                "owned": [bool(core.get_owner_address(ref)) for ref in refs],
                "counted": [count > 0 for count in _counted(refs)],
                "warned": len(warned.lines),
            }
            ray.get(relay.give.options(num_returns=2).remote([b"12345678"]), timeout=60)
    print(json.dumps(found))


def break_here(name: str | None) -> None:
    """Make a call of this process fail; None: it works again."""
    counts._fault = None
    core = native.core_worker()
    changed = Changed(core, name, fails) if name else core
    _replace(lambda: changed, lambda: changed)
    if name:
        counts._fault = ""  # it has been tried, and worked


class OtherStore:
    """Ray's control store, without what safe_refs asks it by."""


def without_basics(what: str) -> None:
    """Print what `dumps` of a reference says in a Ray without one of the basics."""
    from ray.experimental import internal_kv

    ref = ray.put(1)
    worker: Any = ray._private.worker.global_worker
    core = worker.core_worker
    if what == "key-value store":
        internal_kv.internal_kv_get_gcs_client = OtherStore
    elif what == "current_cluster_and_job":
        type(worker).current_cluster_and_job = property(lambda _: None)
    else:
        worker.core_worker = Changed(core, what, takes_more)
    try:
        safe_refs.dumps(ref)
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
    worker.core_worker = core
