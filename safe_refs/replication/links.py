"""Calls from one shard of a registry to the others. They are made by one thread of the shard.

What always holds: a call is waited for without any lock, and no longer than `_CALL_TIMEOUT_S`; what travels with references is made
under the shard's locks, and gone from this process's hands before they are let go of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .._ray import cluster, objects
from ..errors import RegistryUnavailableError
from ..registry.calls import Call
from ..registry.shard import Shard, actor_name

if TYPE_CHECKING:
    import ray

logger = logging.getLogger("safe_refs.registry")

A = TypeVar("A")

_CALL_TIMEOUT_S = 10.0


class Links:
    """The other shards, as one shard reaches them.

    Args:
        shard: which one it is.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._handles: dict[int, Any] = {}  # by shard

    def ask(self, number: int, call: Call[A]) -> A | None:
        """Call another shard and wait for its answer; None if there is none now."""
        waiting = self._begin(number, lambda: call)
        return None if waiting is None else self._answer(number, waiting)

    def send(self, number: int, make: Callable[[], Call[A]]) -> A | None:
        """The same with a call that has references. `make` makes it, under both of the shard's locks."""
        waiting = self._begin(number, make, has_references=True)
        return None if waiting is None else self._answer(number, waiting)

    def fetch(self, number: int, call: Call[A], take: Callable[[A], None]) -> bool:
        """The same with a call whose answer has references. `take` takes it, under both locks. Whether there was an answer."""
        waiting = self._begin(number, lambda: call)
        if waiting is None or not objects.wait([waiting], 1, _CALL_TIMEOUT_S):
            return False
        with self._shard.using:
            answer = self._answer(number, waiting)
            if answer is None:
                return False
            with self._shard.lock:
                take(answer)
            del answer
        return True

    def _begin(
        self, number: int, make: Callable[[], Call[A]], *, has_references: bool = False
    ) -> ray.ObjectRef[A] | None:
        import ray

        try:
            handle = self._handles.get(number)
            if handle is None:
                handle = cluster.named_actor(actor_name(self._shard.registry, number), Shard)
                self._handles[number] = handle
            if not has_references:
                return _sent(handle, make())
            with self._shard.using, self._shard.lock:
                return _sent(handle, make())
        except (ValueError, RegistryUnavailableError, ray.exceptions.RayError):
            self._handles.pop(number, None)
            return None

    def _answer(self, number: int, waiting: ray.ObjectRef[A]) -> A | None:
        """An answer; None if there is none in time, or the shard is dead. Its mistakes count as none, too, and must not hide."""
        import ray

        try:
            answer: A = objects.get(waiting, _CALL_TIMEOUT_S)
        except ray.exceptions.RayTaskError:
            logger.warning(
                "a call to shard %d failed; it is made again", number, exc_info=True, extra={"about": number}
            )
            return None
        except ray.exceptions.RayError:
            self._handles.pop(number, None)
            return None
        return answer


def _sent(handle: Any, call: Call[A]) -> ray.ObjectRef[A]:
    """Send a call. In a function of its own, so that its references are gone from here when it returns."""
    waiting: ray.ObjectRef[A] = getattr(handle, call.method).remote(*call.args)
    return waiting


def unless_unopened(leases: Sequence[bytes], what: Callable[[Sequence[bytes]], bool]) -> bool:
    """Do something for leases together, except for those with an actor that can't be opened any more; whether it was done.

    Ray fails the whole call, and does not say which lease was the reason. So the call is made for one half, then for the other.
    """
    try:
        return what(leases)
    except objects.UnopenedActorError:
        if len(leases) == 1:
            logger.info("lease %s holds an actor of a job that has ended: it stays where it is", leases[0][:4].hex())
            return True
    half = len(leases) // 2
    return unless_unopened(leases[:half], what) and unless_unopened(leases[half:], what)
