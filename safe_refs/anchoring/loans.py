"""A borrower's loans on their way back: the thread that has the clients' relay give them back, so that `dumps` need not wait.

Until the relay has given a reference back, the borrower's hold depends on the relay. If the relay dies before that, or does not
respond, a shard that holds the lease gives the reference back in its stead.

If Ray could not report to an object's owner that the relay has it (the owner did not know this process yet, or a call in flight had
the reference), the relay remembers the object until the owner asks. This process reports it when it lets go; but if it is killed
before, nobody does. So if the relay remembers it 2 s later still, a shard that holds the lease has the owner ask.

What always holds: no reference is kept here, only keys and ids. Nothing calls Ray once the process has left the session's cluster.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from ..threads import QueueThread
from .holders import Holders, is_current
from .relays import Given, Relays

if TYPE_CHECKING:
    from ..registry.sessions import Session

logger = logging.getLogger("safe_refs")

_WATCH_S = 0.5  # then a relay should have given back
_ANSWER_S = 10.0  # a relay that starts takes a second or two
_FORGETS_S = 2.0  # until a relay has forgotten what it has given back
_IDLE_S = 5.0  # then the thread ends


class Lent(NamedTuple):
    """What a relay is to give back: its key there, the lease that holds the same, and the ids of the objects."""

    relay: int
    key: bytes
    registry: str
    lease: bytes
    ids: tuple[bytes, ...]


class Left(NamedTuple):
    """Objects of a loan whose owners did not learn of the relay: in which life of it, and when it should have forgotten them."""

    lent: Lent
    mark: bytes
    at: float


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
        self._returning: QueueThread[Lent | Left] = QueueThread("safe_refs-loans", self._serve, _IDLE_S)
        self._is_closed = False

    def return_later(self, lent: Lent) -> None:
        """Have a relay give back, from a thread."""
        # If there is none, the machine has no more threads, or Python is coming to its end.
        if not self._is_closed and not self._returning.put(lent):
            self.ask_back(lent)

    def ask_back(self, lent: Lent) -> None:
        """Have a shard that holds the lease give back in the relay's stead, and so anchor this process.

        The relay has died before it did; or it waits without success for the owner's question. This happens if another process
        lends the same object to the relay while the relay's last report is still on its way. The owner reads that report last, and
        believes that the relay no longer has the object.
        """
        self._holders.give_back(lent.registry, lent.lease, lent.ids, lent.relay)

    def look_later(self, lent: Lent, mark: bytes) -> None:
        """Some time later, see whether a relay, in that life of it, remembers objects of which the owners did not learn."""
        if not self._is_closed:
            self._returning.put(Left(lent, mark, time.monotonic() + _FORGETS_S))

    def close(self) -> None:
        """The connection is gone: the thread ends by itself."""
        self._is_closed = True

    def _serve(self, first: Lent | Left) -> None:
        """Have relays give back what has been lent, until nothing is left to look after."""
        asked: deque[tuple[float, int, Any, list[Lent]]] = deque()  # when, which relay, its reply, what it is to give
        left: deque[Left] = deque()
        begun = [first]
        while (begun or asked or left) and not self._is_closed:
            try:
                if not is_current(self._session):
                    return  # that cluster is left
                left += [each for each in begun if isinstance(each, Left)]
                self._take_back([each for each in begun if isinstance(each, Lent)], asked)
                self._look_after(left)
            except Exception:
                logger.debug("a relay could not be asked to give back", exc_info=True)  # Ray is gone from this process
            begun = self._returning.taken(_WATCH_S if asked or left else 0.0)

    def _look_after(self, left: deque[Left]) -> None:
        while left and left[0].at < time.monotonic():
            lent, mark, _ = left.popleft()
            still = self._relays.unconfirmed(lent.relay, Given(mark, list(lent.ids)), _ANSWER_S)
            if still:
                self.ask_back(lent._replace(ids=tuple(still)))

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
                for lent in theirs:
                    self.ask_back(lent)
