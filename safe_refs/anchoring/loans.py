"""A borrower's loans on their way back: a thread has the clients' relay give them back, and looks after them.

Until the relay has given a reference back, and the object's owner has asked it to whom, the borrower's hold depends on the relay.
And what the owner does not ask about, the relay remembers for ever. So the thread looks every two seconds, until nothing is amiss,
five times at most:

- The relay does not give back, or is another one by now: it has died, or dropped the loan. The owner does not know this process.
- The relay remembers the object. Either Ray could not report the relay to the owner, who did not know this process, or a call in
  flight had the object. Or the owner read the relay's report of an earlier loan after that, and takes it for one that has nothing.
- Another process has lent the relay the same object: what the relay knew of this process went to that one, with the answer to `hold`.

Then a shard that holds the lease gives the object to this process in the relay's stead. It lends it to the relay as well, so that the
owner asks the relay. An owner may read a shard's report before an older one of this process, if it was stopped for long; so that is
done once more when all is well again.

What always holds: no reference is kept here, only keys and ids. Nothing calls Ray once the process has left the session's cluster.
If nobody holds the lease any more, or this process is killed before it has looked, the relay may remember the object; `relays` says
how much of that it keeps.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..threads import QueueThread
from .holders import Holders, is_current
from .relays import Given, Relays

if TYPE_CHECKING:
    from ..registry.sessions import Session

logger = logging.getLogger("safe_refs")

_WATCH_S = 0.5  # then a relay should have given back
_ANSWER_S = 2.0  # no longer: what the other relay has waits for this thread
_LOOKS_S = 2.0  # by then an owner has asked, unless it was stopped
LOOKS = 5
_IDLE_S = 5.0  # then the thread ends


class Lent(NamedTuple):
    """What a relay is to give back.

    Attributes:
        relay, life: its number, and in which life of it.
        key: under which it holds the references.
        registry: the name of the lease's registry.
        lease: the lease that holds the same.
        sources: leases of the same registry that some of the objects were resolved from.
        ids: of the objects.
    """

    relay: int
    life: bytes
    key: bytes
    registry: str
    lease: bytes
    sources: tuple[bytes, ...]
    ids: tuple[bytes, ...]


class Look(NamedTuple):
    """When to look after a loan, how often still, and whether the last look had the registry give back."""

    lent: Lent
    at: float
    left: int = LOOKS
    has_asked: bool = False


class Loans:
    """The loans of one session.

    Args:
        session: whose they are.
        relays: how to call relays.
        holders: how to ask shards.
    """

    def __init__(self, session: Session, relays: Relays, holders: Holders) -> None:
        self._session = session
        self._relays = relays
        self._holders = holders
        # Not bounded here: each is put there by a `dumps` that has waited for its relay, and the thread takes all at once.
        self._returning: QueueThread[Lent] = QueueThread("safe_refs-loans", self._serve, _IDLE_S)
        self._is_closed = False

    def return_later(self, lent: Lent) -> None:
        """Have a relay give back, from a thread."""
        # If there is none, the machine has no more threads, or Python is coming to its end.
        if not self._is_closed and not self._returning.put(lent):
            self._ask_back([lent])

    def close(self) -> None:
        """The connection is gone: the thread ends by itself."""
        self._is_closed = True

    def _serve(self, first: Lent) -> None:
        """Have relays give back what has been lent, until nothing is left to look after."""
        asked: deque[tuple[float, int, Any, list[Lent]]] = deque()  # when, which relay, its reply, what it is to give
        looks: deque[Look] = deque()  # of the loans of the last _LOOKS_S, and those in which something was amiss
        begun = [first]
        while (begun or asked or looks) and not self._is_closed:
            try:
                if not is_current(self._session):
                    return  # that cluster is left
                looks += [Look(lent, time.monotonic() + _LOOKS_S) for lent in begun]
                self._take_back(begun, asked)
                self._look_after(looks)
            except Exception:
                logger.debug("a relay could not be asked to give back", exc_info=True)  # Ray is gone from this process
            begun = self._returning.taken(_WATCH_S if asked or looks else 0.0)

    def _take_back(self, begun: list[Lent], asked: deque[tuple[float, int, Any, list[Lent]]]) -> None:
        by_relay: dict[int, list[Lent]] = {}
        for lent in begun:
            by_relay.setdefault(lent.relay, []).append(lent)
        now = time.monotonic()
        for relay, theirs in by_relay.items():
            asked.append((now, relay, self._relays.give(relay, [lent.key for lent in theirs]), theirs))
        while asked and now - asked[0][0] > _WATCH_S:
            _, relay, reply, theirs = asked.popleft()
            if not self._relays.answer(relay, reply, _ANSWER_S):
                self._ask_back(theirs)

    def _look_after(self, looks: deque[Look]) -> None:
        due: list[Look] = []
        while looks and looks[0].at < time.monotonic():
            due.append(looks.popleft())
        amiss = self._amiss(due)
        again: list[Look] = []
        for lent, _, left, has_asked in due:
            is_amiss = not amiss.isdisjoint(lent.ids)
            if is_amiss or has_asked:
                again.append(Look(lent, time.monotonic() + _LOOKS_S, left - 1, is_amiss))
        self._ask_back(each.lent for each in again)
        looks += [each for each in again if each.left]

    def _amiss(self, due: list[Look]) -> set[bytes]:
        """The objects with which something is amiss."""
        groups: dict[tuple[int, bytes, bool], set[bytes]] = {}
        for lent, _, left, _ in due:
            groups.setdefault((lent.relay, lent.life, left == LOOKS), set()).update(lent.ids)
        amiss: set[bytes] = set()
        for (relay, life, is_first), ids in groups.items():
            # That another process has lent an object, too, says nothing any more when a shard has given it back since.
            find = self._relays.doubtful if is_first else self._relays.unconfirmed
            amiss.update(find(relay, Given(life, sorted(ids)), _ANSWER_S))
        return amiss

    def _ask_back(self, loans: Iterable[Lent]) -> None:
        """Have shards that hold the leases give back in the relay's stead, and so anchor this process. Each object once."""
        wanted: dict[bytes, Lent] = {id_: lent for lent in loans for id_ in lent.ids}
        for registry, relay in {(lent.registry, lent.relay) for lent in wanted.values()}:
            theirs = {id_: lent for id_, lent in wanted.items() if (lent.registry, lent.relay) == (registry, relay)}
            leases = {lease for lent in theirs.values() for lease in (lent.lease, *lent.sources)}
            key = next(iter(theirs.values())).key
            self._holders.give_back(registry, leases, theirs, relay, key)
