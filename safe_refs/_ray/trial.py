"""A trial of the private calls that anchoring needs, before the first of the user's references is touched by them.

A version of Ray may lack a call, or have one of the same name that does something else. In the middle of a touch (see `counts`) that
would cost the user live references. So each call is tried first, with its control: what it does must not be so before. The trial has
an object of its own, an id that nobody else has, borrowed by this process of itself: Ray asks nobody about it, and stores nothing.

What always holds: no reference of the user's is touched, and Ray knows nothing of the trial's object afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

_NUMBER = b"\1\0\0\0"  # the last bytes of an id: the first object that some task has put or returned


class UndecidedError(Exception):
    """The trial could not be made just now."""


class _Watched:
    """Ray's core worker, which remembers the name of the call that was made last."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self.last = ""

    def __getattr__(self, name: str) -> Any:
        self.last = name
        return getattr(self._core, name)


def fault(core_worker: Any, own_address: bytes, touch: Callable[[Any], bool]) -> str:
    """What this Ray does not do as anchoring needs it; empty if it does all. Takes 0.2 ms, and twice what `touch` takes.

    Private: the calls, each as `counts` makes it, seen since Ray 2.52. What happens without them, see `counts.can_anchor`.

    Args:
        core_worker: of this process.
        own_address: as of an owner (`workers.own_address`).
        touch: takes a reference's count to zero and up again; whether the owner was reported to.

    Raises:
        UndecidedError: from `touch`.
        Exception: a signal handler's. What a call raises, it raises again, when it is tried a second time.
    """
    first: Exception | None = None
    while True:
        core = _Watched(core_worker)
        try:
            found = _try_all(core, own_address, touch)
        except UndecidedError:
            raise
        except Exception as error:
            if first is not None:
                return f"CoreWorker.{core.last}: {error!r}"
            first = error
        else:
            if first is not None:
                raise first
            return found


def _try_all(core: Any, own_address: bytes, touch: Callable[[Any], bool]) -> str:
    import ray

    nil: Any = ray.ObjectRef.nil()
    ref: Any = ray.ObjectRef(os.urandom(len(nil.binary()) - len(_NUMBER)) + _NUMBER)

    def register() -> None:
        core.deserialize_and_register_object_ref(ref.binary(), nil, own_address, b"")

    def has_owner() -> bool:
        try:
            return bool(core.get_worker_id().binary() in core.get_owner_address(ref))
        except ValueError:
            return False

    def is_counted() -> bool:
        return bool(core.get_all_reference_counts().get(ref.hex().encode()) == {"local": 1, "submitted": 0})

    # What `workers.is_alone` and `exits` ask.
    if {core.current_actor_is_asyncio(), core.get_current_actor_should_exit()} - {True, False}:
        return "CoreWorker.current_actor_is_asyncio or get_current_actor_should_exit: neither True nor False"
    if core.current_actor_max_concurrency() < 1:
        return "CoreWorker.current_actor_max_concurrency: less than one"

    if has_owner():
        return "CoreWorker.get_owner_address: knows who owns what nobody does"
    register()
    if not has_owner():
        return "CoreWorker.deserialize_and_register_object_ref: the owner isn't known"
    if core.serialize_object_ref(ref)[1:] != (core.get_owner_address(ref), b""):
        return "CoreWorker.serialize_object_ref: not what was registered"
    # Counts: 1, 2, 1, and the owner is known; then zero, when Ray forgets it.
    core.add_object_ref_reference(ref)
    core.remove_object_ref_reference(ref)
    if not has_owner():
        return "CoreWorker.add_object_ref_reference: had no effect"
    core.remove_object_ref_reference(ref)
    if has_owner():
        return "CoreWorker.remove_object_ref_reference: had no effect"
    core.add_object_ref_reference(ref)
    register()
    if not is_counted():
        return "CoreWorker.get_all_reference_counts: not what is counted"
    if not touch(ref):
        return "a count that touches zero: the owner was not reported to"
    if not (is_counted() and has_owner()):
        return "a count that touches zero: it, or the owner, is another one afterwards"
    return ""
