"""Couriers, and what they are for: *anchoring*, by which the owners of objects learn who holds them.

Ray lets an object live for those whom its owner knows. A process B that borrows a reference and passes it on tells the owner so only
when its own count for the object reaches zero (or in the answer to the very task that brought the reference). If B is killed before,
whoever got the reference from B holds nothing. This is so for a process that pins a reference which it borrows (it hangs the lease on
itself), and for the registry, on which hangs everybody who resolved from it. Anchoring makes B's count touch zero on purpose:

1. a courier takes the reference, too, and has said so;
2. B's count goes to zero and up again (`_ray.touch_zero`): Ray tells the owner everybody to whom B passed the reference, the courier
   among them, and forgets B;
3. the courier gives the reference back to B and drops its own: Ray tells the owner of B.

Nothing is copied. Between 2 and 3, some milliseconds, B's own hold hangs on the courier. So a shard, whose hold may be the last, uses
two couriers, which are on different nodes where there are several; clients use a third, and have the registry give the reference back
if it dies. Shards and clients have a spare each, which starts when one of theirs doesn't answer: Ray may take half a minute to see
that a node is gone.

What always holds: a courier keeps nothing longer than a hand-over takes; couriers are the cluster's, whichever registry uses them;
they start when somebody needs them, and end when nobody has for a while. Another shard can't be a shard's courier: it may hold the
same object itself, and then its count doesn't reach zero.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from .. import _ray

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

# The shards' couriers serve nobody else: the answer to a `hold` of the same object, in the middle of a hand-over, would give what Ray
# knows there of the shard away to whoever asked.
FOR_SHARDS = (0, 1, 3)  # any two of them
FOR_CLIENTS = (2, 4)  # any one
STAYS_S = 60.0  # how long a courier waits for work
# A shard's hold may be the last, so that it is given time; a client has the shard's to go back to.
_FORGETS_S = {number: 10.0 if number in FOR_SHARDS else 3.0 for number in (*FOR_SHARDS, *FOR_CLIENTS)}
_TICK_S = 1.0

_handles: dict[tuple[_ray.Connection, int], Any] = {}


class Courier:
    """The actor's class.

    Args:
        forgets_s: what was not asked for by then is dropped: who brought it has died, or was stopped for long.
    """

    def __init__(self, forgets_s: float) -> None:
        self._forgets_s = forgets_s
        self._held: dict[bytes, tuple[float, list[Ref]]] = {}
        # One that starts anew knows nothing, and is not to be taken for one that is done with it.
        self._life = os.urandom(8)
        self._asked_at = time.monotonic()
        threading.Thread(target=self._tidy, name="safe_refs-time", daemon=True).start()

    def hello(self) -> bool:
        """Stay, somebody needs you."""
        self._asked_at = time.monotonic()
        return True

    def hold(self, key: bytes, refs: list[Ref], *given: tuple[bytes, list[bytes]]) -> tuple[bytes, list[bytes]]:
        """Take references until they are asked for; which life of the courier this is, and `unheard` of what it gave back before."""
        self._asked_at = time.monotonic()
        self._held[key] = (self._asked_at, refs)
        return self._life, [id_ for each in given for id_ in self.unheard(*each)]

    def give(self, keys: list[bytes]) -> tuple[list[Ref], bytes]:
        """Give references back, and drop them; as a result of its own, which life this is, or nothing if some weren't here."""
        self._asked_at = time.monotonic()
        found = [self._held.pop(key, (0.0, []))[1] for key in keys]
        return [ref for refs in found for ref in refs], self._life if all(found) else b""

    def unheard(self, life: bytes, ids: list[bytes]) -> list[bytes]:
        """Of these objects, given back in that life, those that are known here still, as their owners have not asked for them.

        An owner asks when it has heard from who brought the reference.
        """
        return ids if life != self._life else _ray.counted(ids)

    def where(self) -> tuple[str, int]:
        """The node that it runs on, and its process id."""
        return _ray.node_and_process()

    def held(self) -> int:
        """How many references it holds now."""
        return sum(len(refs) for _, refs in self._held.values())

    def end(self) -> None:
        """End, unless somebody was quicker."""
        import ray

        if not self._held and time.monotonic() - self._asked_at > STAYS_S:
            ray.actor.exit_actor()  # type: ignore[no-untyped-call] # Ray leaves this one untyped

    def _tidy(self) -> None:
        import ray

        me = ray.get_runtime_context().current_actor
        while True:
            time.sleep(_TICK_S)
            now = time.monotonic()
            # Only keys: a loop's variables would keep the last references until the next turn.
            for key in [key for key, held in list(self._held.items()) if now - held[0] > self._forgets_s]:
                self._held.pop(key, None)
            if now - self._asked_at > STAYS_S and not self._stay(me.end.remote()):
                return

    def _stay(self, reply: Any) -> bool:
        """Whether this courier goes on after it was told to end.

        One call at a time: Ray lets an actor end only when the calls that it made are answered, and answers none that come meanwhile.
        """
        import ray

        while not ray.wait([reply], timeout=_TICK_S)[0]:
            pass
        try:
            _ray.get(reply, _TICK_S)
        except Exception:
            return False  # it ends
        return True


def courier(number: int) -> Any:
    """The handle of a courier, which is started if it doesn't run. Doesn't wait until it has started."""
    connected = _ray.connection()
    known = _handles.get((connected, number))
    if known is None:
        if len(_handles) > 64:
            _handles.clear()
        known = _handles[(connected, number)] = _ray.start_actor(
            name(number), Courier, [_FORGETS_S[number]], place=number
        )
    return known


def hello(number: int) -> Any:
    """Have a courier stay: the reply to wait for; None if it can't be called now."""
    return _call(number, "hello")


def hold(number: int, key: bytes, refs: list[Ref], *given: tuple[bytes, list[bytes]]) -> Any:
    """Have a courier take references: the reply to wait for (see `Courier.hold`); None if it can't be called now."""
    return _call(number, "hold", key, refs, *given)


def give(number: int, keys: list[bytes]) -> Any:
    """Have a courier give them back, which drops them there: the reply to wait for, or None.

    What it gives back is dropped here at once: that Ray has told this process of it is what counts.
    """
    replies = _call(number, "give", keys, returns=2)
    return None if replies is None else replies[1]


def unheard(number: int, life: bytes, ids: list[bytes], timeout_s: float) -> list[bytes]:
    """Of these objects, that a courier gave back in that life, those whose owners may not have heard of it."""
    told: list[bytes] | None = answer(number, _call(number, "unheard", life, ids), timeout_s)
    return ids if told is None else told


def answer(number: int, reply: Any, timeout_s: float) -> Any:
    """A courier's answer; None if none came in time: it is looked up anew, next time.

    Raises:
        UnopenedActorError: it was to hold an actor of a job that has ended.
    """
    import ray

    if reply is not None:
        try:
            return _ray.fetch(reply, timeout_s)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            pass
    forget(number)
    return None


def _call(number: int, method: str, *args: Any, returns: int = 1) -> Any:
    import ray

    try:
        call = getattr(courier(number), method)
        return call.remote(*args) if returns == 1 else call.options(num_returns=returns).remote(*args)
    except ray.exceptions.RayActorError:
        forget(number)
        return None


def forget(number: int) -> None:
    """A courier has not answered: look it up anew, next time."""
    _handles.pop((_ray.connection(), number), None)


def name(number: int) -> str:
    """The actor's name."""
    return f"courier:{number}"
