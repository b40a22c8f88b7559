"""What a process remembers of its reports to owners, and of objects that it got a moment ago: when will an owner know it?

What always holds: nothing here knows Ray or waits. A session has one of these, so that it goes with the connection: ids of objects
repeat from one cluster to the next. Any thread may use it, also in a signal's handler that has interrupted another call of the same
thread: there is no lock, each step is one for the interpreter, and no step relies on what the step before has seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..envelope import LeaseAddress

RECENT_S = 2.0  # by then Ray's reports have long arrived, of what was lent or resolved
MOST_RECENT = 4096
MOST_ACQUAINTED = 1024


class Life(NamedTuple):
    """A relay's number, and what tells one life of it from the next."""

    relay: int
    mark: bytes


class Recent(NamedTuple):
    """When this process got an object, or anchored it, and the lease that it resolved it from, if it did."""

    at: float
    source: LeaseAddress | None


_NEVER = Recent(float("-inf"), None)
_NEVER_SAID = (float("-inf"), Life(0, b""))


class Reports:
    """All of it, for one session.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Objects whose owners may not know this process just now; the newest last. At most MOST_RECENT: then the oldest goes.
        self._recent: OrderedDict[bytes, Recent] = OrderedDict()
        # Objects of which this process has made Ray report, and of which the owners may not have got the report yet. Those of one
        # loan, as the next one takes them.
        self._said: dict[bytes, tuple[float, Life]] = {}
        # Owners that have got every report of this process, as far as it knows, except those in `_said`. At most MOST_ACQUAINTED:
        # then the oldest goes, and has to be waited for once more.
        self._acquainted: OrderedDict[bytes, None] = OrderedDict()

    def note_recent(self, ids: Iterable[bytes], source: LeaseAddress | None) -> None:
        """This process has got these objects from a lease just now, or (None) has anchored them."""
        for id_ in ids:
            self._recent.pop(id_, None)
            self._recent[id_] = Recent(self._clock(), source)
        _trim(self._recent, MOST_RECENT)

    def recent(self, id_: bytes) -> Recent:
        """When that was of an object; long ago if it wasn't, or isn't known any more."""
        return self._recent.get(id_, _NEVER)

    def lately(self) -> set[bytes]:
        """Those of which it was within the last RECENT_S."""
        since = self._clock() - RECENT_S
        return {id_ for id_ in list(self._recent) if self.recent(id_).at > since}

    def note_said(self, ids: Iterable[bytes], life: Life) -> None:
        """Ray is reporting to the owners of these objects, who know the relay in that life of it, once they have got it."""
        self._said.update(dict.fromkeys(ids, (self._clock(), life)))

    def take_said(self) -> dict[Life, list[bytes]]:
        """By relay the objects that were noted so, within the last RECENT_S; from now on they are the caller's to see to."""
        since = self._clock() - RECENT_S
        found: dict[Life, list[bytes]] = {}
        for id_ in list(self._said):
            at, life = self._said.pop(id_, _NEVER_SAID)
            if at > since:
                found.setdefault(life, []).append(id_)
        return found

    def acquaint(self, owners: Iterable[bytes]) -> None:
        """These owners have got all reports."""
        self._acquainted.update(dict.fromkeys(owners))
        _trim(self._acquainted, MOST_ACQUAINTED)

    def is_acquainted(self, owner: bytes) -> bool:
        """Whether an owner has got all of them, as far as this process knows."""
        return owner in self._acquainted


def _trim(entries: OrderedDict[bytes, Recent] | OrderedDict[bytes, None], most: int) -> None:
    while len(entries) > most:
        try:
            entries.popitem(last=False)
        except KeyError:  # another thread has emptied it
            break
