"""Relays, and what they are for: *anchoring*, which makes the owners of objects know who holds them.

Ray lets an object live for the processes that its owner knows. A process B that borrows a reference and passes it on reports that
to the owner at two moments only: when the task that received the reference returns, and when B's own count for the object reaches
zero. If B is killed before that, the owner never knows the process that got the reference from B, and its reference is dead. So a
lease depends on the borrower that pinned it, and every process that resolved a reference depends on the registry. Anchoring makes
B's count reach zero on purpose, and B keeps the reference nevertheless:

    owner                      B                              relay
      │                        │ ── 1. hold ────────────────►  │    the relay holds the reference, too,
      │                        │ ◄───────── held ───────────── │    and has acknowledged that
      │ ◄─ 2. "these hold it" ─│ count → 0 → as before         │    Ray reports to the owner every process to which B passed the
      │                        │                               │    reference, the relay among them; the owner forgets B
      │                        │ ── 3. give ────────────────►  │    the relay gives the reference back to B, and drops it:
      │ ◄──────────────────────┼───── "B holds it" ─────────── │    Ray reports B to the owner

    between 2 and 3, for some milliseconds, B's own hold depends on the relay

Nothing is copied. A shard may be the last to hold the reference, so it uses two relays. Clients use a third relay; if it dies, the
registry gives the reference back in its stead. Shards and clients have a spare each, which starts when one of theirs does not
respond: Ray may take half a minute to see that a node is gone. All run on the head node: to Ray's autoscaler a node with an actor is
never idle, and when the head node dies, so does the cluster.

What always holds: a relay keeps nothing longer than a loan takes; relays are the cluster's, whichever registry uses them; they start
when somebody needs them, and end when nobody has for 20 s; a shard needs its two while it holds leases. Another shard can't be a
shard's relay: it may hold the same object itself, and then its count does not reach zero.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, NamedTuple, ParamSpec

from .._ray import classes, cluster, counts, objects, packages, requests, workers
from ..bounds import Key, ObjectId, Range
from ..errors import RegistryUnavailableError
from ..registry.received import actor, checked

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

P = ParamSpec("P")

logger = logging.getLogger("safe_refs.registry")

# The shards' relays serve only shards. If another process had such a relay hold the same object during a loan, the relay's answer
# would send what Ray knows there of the shard to that process, and not to the owner.
FOR_SHARDS = (0, 1, 3)  # any two of them
FOR_CLIENTS = (2, 4)  # any one
STAYS_S = 20.0  # how long a relay waits for work; to start one takes a second or two, and it has 50 MB
MAY_HAVE_ENDED_S = STAYS_S / 2  # one that has not answered for longer is looked up anew
# A shard's hold may be the last, so a relay gives it time; a client has the shard's to go back to.
_FORGETS_S = {number: 10.0 if number in FOR_SHARDS else 3.0 for number in (*FOR_SHARDS, *FOR_CLIENTS)}
_COMPARES_S = 5.0  # longer than a borrower takes until it looks after a loan
LENDER = 4  # bytes of a loan's key say who lends; as many are drawn for each loan
RelayNumber = Annotated[int, Range(0, max(*FOR_SHARDS, *FOR_CLIENTS))]
_TICK_S = 1.0
_MOST_REMEMBERED = 1000
_FOUND_S = 1.0  # for Ray's control service, when a relay is looked up or started
_ENDS_WITHIN_S = 0.01


class Given(NamedTuple):
    """Objects that a relay gave back: in which life of it (see `SafeRefsRelay.hold`), and their ids."""

    life: Key
    ids: list[ObjectId]


@actor
class SafeRefsRelay:
    """The actor's class.

    Args:
        forgets_s: a loan that nobody has asked back by then is dropped: who brought it has died, or was stopped for long.
        compares_s: for so long it remembers who lent which object, to see whether others did, too.
    """

    def __init__(self, forgets_s: float, compares_s: float) -> None:
        self._forgets_s = forgets_s
        self._compares_s = compares_s
        # By key, since when, and the references. Bounded by what is brought within `forgets_s`. Each step on it is atomic, so that it
        # needs no lock: a loan is either given back or dropped.
        self._held: dict[bytes, tuple[float, list[Ref]]] = {}
        # By object: who lent it last, and when; and when several had lent it within `compares_s`. Older ones go at the next tick.
        self._lender: dict[bytes, tuple[bytes, float]] = {}
        self._shared: dict[bytes, float] = {}
        # A relay that starts anew knows nothing, and must not be taken for one that has given all back.
        self._life = os.urandom(8)
        self._asked_at = time.monotonic()
        self._ending: Any = (
            None  # the reply of the call by which this relay told itself to end, while that is under way
        )
        classes.serve()
        threading.Thread(target=self._keep_time, name="safe_refs-time", daemon=True).start()

    @checked
    def hello(self) -> bool:
        """Stay, somebody needs you."""
        self._asked_at = time.monotonic()
        return True

    @checked
    def hold(self, key: Key, refs: list[Ref], given: list[Given]) -> tuple[bytes, list[bytes]]:
        """Take references until they are asked for; which life of the relay this is, and what is `unconfirmed` of earlier loans.

        The key's first LENDER bytes say who lends them.
        """
        self._asked_at = time.monotonic()
        self._held[key] = (self._asked_at, refs)
        if self._compares_s:
            self._compare(key[:LENDER], [ref.binary() for ref in refs])
        return self._life, [id_ for each in given for id_ in self.unconfirmed(each)]

    @checked
    def give(self, keys: list[Key]) -> tuple[list[Ref], bytes]:
        """Give references back, and drop them; as a result of its own, which life this is, or nothing if some weren't here."""
        self._asked_at = time.monotonic()
        found = [self._held.pop(key, (0.0, []))[1] for key in keys]
        return [ref for refs in found for ref in refs], self._life if all(found) else b""

    @checked
    def unconfirmed(self, given: Given) -> list[bytes]:
        """Those of these objects that this relay still counts: their owners have not yet asked for its report.

        An owner asks the relay when the process that lent the reference has reported the relay. Ray answers with whom the relay gave
        the reference to, and forgets the object here.
        """
        return given.ids if given.life != self._life else counts.counted(given.ids)

    @checked
    def doubtful(self, given: Given) -> list[bytes]:
        """Those that are `unconfirmed`, or that several have lent at about the same time.

        The answer to the later one's `hold` took with it what Ray knew here of the earlier one, and the owner's question finds
        nothing.
        """
        return list({*self.unconfirmed(given), *(id_ for id_ in given.ids if id_ in self._shared)})

    @checked
    def where(self) -> tuple[str, int]:
        """The node that it runs on, and its process id."""
        return workers.node_and_process()

    @checked
    def end(self) -> None:
        """End, unless somebody has asked for something meanwhile."""
        import ray

        if not self._held and time.monotonic() - self._asked_at > self._stays_s():
            ray.actor.exit_actor()  # type: ignore[no-untyped-call] # Ray leaves this one untyped

    def _compare(self, lender: bytes, ids: list[bytes]) -> None:
        for id_ in ids:
            last, at = self._lender.get(id_, (lender, 0.0))
            if last != lender and self._asked_at - at < self._compares_s:
                self._shared[id_] = self._asked_at
            self._lender[id_] = (lender, self._asked_at)

    def _keep_time(self) -> None:
        while True:
            time.sleep(_TICK_S)
            try:
                if self._tick():
                    return
            except Exception:
                logger.debug("a relay could not look what it may drop; it looks again", exc_info=True)

    def _stays_s(self) -> float:
        """How long it waits for work: not for long if it remembers much, as who had lent it was killed right after."""
        return STAYS_S if counts.remembered() < _MOST_REMEMBERED else _TICK_S

    def _tick(self) -> bool:
        """Drop what nobody has asked back; end if nobody needs this relay; whether it ends.

        At most one call to end is under way: Ray lets an actor end only when the calls that it made itself are answered, and an actor
        that is ending answers none. So the call's answer is looked for at each tick, and never waited for.
        """
        import ray

        now = time.monotonic()
        # Only keys: a loop's variables would keep the last references until the next turn.
        for key in [key for key, held in list(self._held.items()) if now - held[0] > self._forgets_s]:
            self._held.pop(key, None)
        for id_ in [id_ for id_, (_, at) in list(self._lender.items()) if now - at > self._compares_s]:
            self._lender.pop(id_, None)
        for id_ in [id_ for id_, at in list(self._shared.items()) if now - at > self._compares_s]:
            self._shared.pop(id_, None)
        if self._ending is None:
            if now - self._asked_at > self._stays_s():
                self._ending = ray.get_runtime_context().current_actor.end.remote()
            return False
        ready, _ = ray.wait([self._ending], timeout=_ENDS_WITHIN_S)
        if not ready:
            return False
        ending, self._ending = self._ending, None
        try:
            objects.get(ending, _TICK_S)
        except Exception:  # the call fails because the actor has ended
            return True
        return False


class Relays:
    """The relays, as one process calls them. None of its methods waits, but `answer`."""

    def __init__(self) -> None:
        # By number: at most one for each of FOR_SHARDS and FOR_CLIENTS. Each step on it is atomic, and two threads that look up the
        # same relay at once find the same actor, so that it needs no lock.
        self._handles: dict[int, Any] = {}

    def handle(self, number: int) -> Any:
        """The handle of a relay, which is started if it doesn't run. Doesn't wait until it has started.

        Raises:
            ValueError: it is being started by another process just now, and can't be found yet.
            RegistryUnavailableError: Ray's control service does not answer.
        """
        known = self._handles.get(number)
        if known is None:
            deadline = requests.soon(_FOUND_S)
            terms = (_FORGETS_S[number], 0.0 if number in FOR_SHARDS else _COMPARES_S)
            known = cluster.start_actor(name(number), SafeRefsRelay, terms, place=0, deadline=deadline)
            self._handles[number] = known
        return known

    def hello(self, number: int) -> Any:
        """Have a relay stay: the reply to wait for; None if it can't be called now."""
        return self._call(number, SafeRefsRelay.hello)

    def hold(self, number: int, key: bytes, refs: list[Ref], given: list[Given]) -> Any:
        """Have a relay take references: the reply to wait for (see `SafeRefsRelay.hold`); None if it can't be called now."""
        return self._call(number, SafeRefsRelay.hold, key, refs, given)

    def give(self, number: int, keys: list[bytes]) -> Any:
        """Have a relay give references back, which drops them there: the reply to wait for; None if it can't be called now.

        The references that come back are dropped here at once: what counts is that Ray has told this process of them.
        """
        replies = self._call(number, SafeRefsRelay.give, keys)
        return None if replies is None else replies[1]

    def unconfirmed(self, number: int, given: Given, timeout_s: float) -> list[bytes]:
        """See `SafeRefsRelay.unconfirmed`; all of the objects if there is no answer in time."""
        found: list[bytes] | None = self.answer(number, self._call(number, SafeRefsRelay.unconfirmed, given), timeout_s)
        return given.ids if found is None else found

    def doubtful(self, number: int, given: Given, timeout_s: float) -> list[bytes]:
        """See `SafeRefsRelay.doubtful`; all of the objects if there is no answer in time."""
        found: list[bytes] | None = self.answer(number, self._call(number, SafeRefsRelay.doubtful, given), timeout_s)
        return given.ids if found is None else found

    def answer(self, number: int, reply: Any, timeout_s: float) -> Any:
        """A relay's answer; None if none came in time: then the relay is looked up anew, next time.

        Raises:
            UnopenedActorError: it was to hold an actor of a job that has ended.
            RegistryUnavailableError: Ray is gone from this process.
        """
        import ray

        if reply is not None:
            try:
                return objects.fetch(reply, timeout_s)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                packages.note_death(error)
        self.forget(number)
        return None

    def forget(self, number: int) -> None:
        """A relay has not answered: look it up anew, next time."""
        self._handles.pop(number, None)

    def _call(self, number: int, method: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        import ray

        try:
            call = getattr(self.handle(number), method.__name__)
            if method is SafeRefsRelay.give:
                call = call.options(num_returns=2)
            return call.remote(*args)
        except (
            ValueError,
            RegistryUnavailableError,
            ray.exceptions.RayActorError,
            AttributeError,
        ):  # the last: of another release
            self.forget(number)
            return None


def name(number: int) -> str:
    """The name of a relay's actor."""
    return f"relay:{number}"
