"""A shard's calls to the other shards of its registry: recovery after a restart, news, moves when the registry grows.

All of it runs in one thread of the shard. What always holds: the rules are used under the shard's lock only, and no call is waited
for under it; every wait has a timeout, and a shard that doesn't answer keeps no other from being told; what could not be delivered is
still owed; recovery ends, whatever fails.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from .._ray import requests
from ..registry.calls import Call
from ..registry.records import Identity
from ..registry.shard import Shard
from . import control_store
from .links import Links, unless_unopened
from .records import Records
from .rules import Rules

logger = logging.getLogger("safe_refs.registry")

_MOST_AT_ONCE = 200  # leases in a call; a few milliseconds of the receiver's time
_MOST_CALLS = 50  # with news for one shard, before the others get theirs
_RECOVERY_TIMEOUT_S = 30.0  # a peer that isn't back by then is not waited for
_AGAIN_S = 0.1  # between two rounds of asking those that are not back
_PAUSE_S = 0.2  # before what could not be delivered is tried again
_BREATH_S = 0.05  # so that news travel together
_LONGEST_PAUSE_S = 3600.0
_EPOCH_S = 3600.0  # until the control store has the new epoch: nothing else is to be done meanwhile


class Side(Protocol):
    """A shard's part, as its own peers' thread knows it, and as those of the other shards do; see `part.Replication`."""

    def look_again(self) -> bool:
        """For others: the topology has changed."""

    def repair(self, leases: Sequence[bytes], shards: Sequence[int]) -> bool:
        """For others: those shards don't have these leases."""

    def shared_with(self, shard: int) -> tuple[list[bytes], bool]:
        """For others: what a shard that came back should hold."""

    def records(self, leases: Sequence[bytes]) -> Records:
        """For others: what there is to say of leases."""

    def peer_is_complete(self, shard: int) -> bool:
        """For others: a shard that came back has all."""

    def receive(self, records: Records, identity: Identity) -> bool:
        """For others: news."""

    def has_moved(self, shard: int, version: int) -> int:
        """For others, of the first shard: a shard has moved all leases."""

    def look(self) -> bool:
        """Look the topology up."""

    def packed(self, leases: Sequence[bytes]) -> Records:
        """What another shard is to be told of leases."""

    def passed_on(self, leases: Sequence[bytes]) -> None:
        """Another shard has got these leases' records."""

    def unpack(self, records: Records) -> None:
        """Merge another shard's records."""


class _Moving(NamedTuple):
    """A growth that this shard moves leases for: by its version, and the leases that are yet to be given to their new holders."""

    version: int
    left: list[bytes]


class Peers:
    """What the peers' thread of a shard does.

    Args:
        shard: whose thread it is.
        part: its part, whose methods the others' calls run, too.
        rules: the part's rules.
    """

    def __init__(self, shard: Shard, part: Side, rules: Rules[Any]) -> None:
        self._shard = shard
        self._part = part
        self._rules = rules
        self._calls = type(part)  # whose methods the other shards are called by
        self._links = Links(shard)
        self._wake = threading.Event()
        # By shard, the leases that it is to be asked for, as they are lost here. Guarded by the shard's lock. At most what this shard
        # held.
        self._wanted_back: dict[int, dict[bytes, None]] = {}
        # The shards that are yet to be told that the topology has changed. Guarded by the shard's lock. A shard 0 that restarts may
        # have written a topology and told nobody of it.
        self._unaware = set(rules.others()) if shard.number == 0 else set[int]()
        self._moving = _Moving(0, [])
        self._recovers_by = time.monotonic() + _RECOVERY_TIMEOUT_S
        self._has_verdict = False  # the verdict of the recovery, `_is_lossy`, is known
        self._is_lossy = False
        self._new: Identity | None = None  # that the registry has, as leases may be lost

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def announce(self) -> None:
        """The topology has changed: the others are to look. Under the shard's lock."""
        self._unaware.update(self._rules.others())
        self._wake.set()

    def want_back(self, number: int, leases: Sequence[bytes]) -> None:
        """Have another shard pass on leases that are lost here. Under the shard's lock."""
        self._wanted_back.setdefault(number, {}).update(dict.fromkeys(leases))
        self._wake.set()

    def run(self) -> None:
        """The thread. May be run again after an error, and goes on where it was."""
        if self._rules.is_recovering:
            self._recover()
        while not self._shard.is_closing:
            self._wake.clear()
            behind = self._announce()
            behind |= self._ask_back()
            behind |= self._tell()
            behind |= self._move()
            self._wake.wait(_PAUSE_S if behind else _LONGEST_PAUSE_S)
            time.sleep(_BREATH_S)

    # A restarted shard.

    def _recover(self) -> None:
        """Get back from the others what this shard held. If too few could tell, the registry begins a new epoch."""
        while self._rules.unheard and time.monotonic() < self._recovers_by and not self._shard.is_closing:
            for number in sorted(self._rules.unheard):
                begun, received = time.monotonic(), None
                try:
                    received = self._recover_from(number)
                except Exception:
                    logger.warning(
                        "shard %d can't be asked; it is asked again", number, exc_info=True, extra={"about": number}
                    )
                if received is not None:
                    logger.info(
                        "%d lease(s) from shard %d in %.2f s",
                        received,
                        number,
                        time.monotonic() - begun,
                        extra={"about": number},
                    )
            if self._rules.unheard:
                time.sleep(_AGAIN_S)
        # What follows asks the control store, and may fail: each step is done once, however often the thread is run again.
        if not self._has_verdict:
            with self._shard.lock:
                self._is_lossy, self._has_verdict = self._rules.recovered(), True
        if self._is_lossy and self._new is None and not self._shard.is_closing:
            logger.warning(
                "shard %d of registry %r has restarted, and the others could not tell all that it held: leases may be lost",
                self._shard.number,
                self._shard.registry,
            )
            self._new = control_store.new_epoch(self._shard.registry, requests.soon(_EPOCH_S))
        self._part.look()  # the registry may have grown meanwhile
        with self._shard.lock:
            self._rules.end_recovery(self._new)

    def _recover_from(self, number: int) -> int | None:
        """Take from another shard what it shares with this one: how many leases; None if it can't be asked now."""
        shared = self._links.ask(number, Call(self._calls.shared_with, self._shard.number))
        if shared is None:
            return None
        leases, complete = shared
        for batch in _batches(leases):
            if not unless_unopened(batch, partial(self._fetch, number)):
                return None
        if self._links.ask(number, Call(self._calls.peer_is_complete, self._shard.number)) is None:
            return None
        with self._shard.lock:
            self._rules.answered(number, complete)
        return len(leases)

    # News.

    def _announce(self) -> bool:
        """Tell the others that the topology has changed; whether some don't know yet."""
        with self._shard.lock:
            unaware, self._unaware = self._unaware, set()
        try:
            for number in sorted(unaware):
                if self._links.ask(number, Call(self._calls.look_again)):
                    unaware.discard(number)
        finally:
            with self._shard.lock:
                self._unaware |= unaware
        return bool(unaware)

    def _ask_back(self) -> bool:
        """Ask other holders for what is lost here; whether some could not be asked."""
        with self._shard.lock:
            wanted, self._wanted_back = self._wanted_back, {}
        try:
            for number, leases in list(wanted.items()):
                if self._links.ask(number, Call(self._calls.repair, list(leases), [self._shard.number])):
                    del wanted[number]
        finally:
            with self._shard.lock:
                for number, leases in wanted.items():
                    self._wanted_back.setdefault(number, {}).update(leases)
        return bool(wanted)

    def _tell(self) -> bool:
        """Deliver news; whether some are owed still."""
        with self._shard.lock:
            owing = self._rules.owing()
        for number in owing:
            for _ in range(_MOST_CALLS):
                with self._shard.lock:
                    news = self._rules.take_news(number, _MOST_AT_ONCE)
                if not news:
                    break
                if not self._delivers(number, news):
                    with self._shard.lock:
                        self._rules.give_back(number, news)
                    break
        with self._shard.lock:
            return bool(self._rules.owing())

    # The registry grows.

    def _move(self) -> bool:
        """Give leases to the shards that hold them from now on, and let go of those that are theirs alone; whether it is to go on.

        One pass: what belongs to a shard that doesn't answer is left for the next. Shard 0 is told that all has moved until it has
        ended the growth, because it may forget that in a crash.
        """
        rules, number = self._rules, self._shard.number
        with self._shard.lock:
            topology = rules.topology
            if number >= topology.before:
                # What it got back when it restarted in a growth that then ended. A new shard may not know its topology yet.
                if not topology.before and number < topology.shards and self._moving.version != topology.version:
                    rules.drop_moved(list(self._shard.table.live))
                self._moving = _Moving(topology.version, [])
                return False
            if self._moving.version != topology.version:
                self._moving = _Moving(topology.version, rules.misplaced())
        if self._moving.left:
            self._moving = _Moving(topology.version, self._moved_on(self._moving.left))
            if self._moving.left:
                return True
            logger.info("shard %d has moved its leases to %d shards", number, topology.shards)
        if number == 0:
            version: int | None = self._part.has_moved(0, topology.version)
        else:
            version = self._links.ask(0, Call(self._calls.has_moved, number, topology.version))
        if version is not None and version > rules.topology.version:
            self._part.look()
        return bool(rules.topology.before)

    def _moved_on(self, leases: Sequence[bytes]) -> list[bytes]:
        """Give leases to their new holders; those that some could not be given to."""
        away: set[int] = set()
        left: list[bytes] = []
        for batch in _batches(leases):
            by_shard: dict[int, list[bytes]] = {}
            for lease in batch:
                for number in self._rules.newcomers(lease):
                    by_shard.setdefault(number, []).append(lease)
            missed: set[bytes] = set()
            for number, theirs in by_shard.items():
                if self._shard.is_closing or number in away or not self._delivers(number, theirs):
                    away.add(number)
                    missed.update(theirs)
            left += [lease for lease in batch if lease in missed]
            with self._shard.lock:
                self._rules.drop_moved([lease for lease in batch if lease not in missed])
        return left

    # Records.

    def _delivers(self, number: int, leases: Sequence[bytes]) -> bool:
        """Tell a shard what there is to say of some leases now; whether it has taken that. Never raises."""
        try:
            return unless_unopened(leases, partial(self._give, number))
        except Exception:
            logger.warning(
                "shard %d can't be told of %d lease(s); it is tried again",
                number,
                len(leases),
                exc_info=True,
                extra={"about": number},
            )
            return False

    def _give(self, number: int, leases: Sequence[bytes]) -> bool:
        def news() -> Call[bool]:
            return Call(self._calls.receive, self._part.packed(leases), self._shard.table.identity)

        try:
            return self._links.send(number, news) is True
        finally:
            # Also if there was no answer, as it may have got them.
            with self._shard.lock:
                self._part.passed_on(leases)

    def _fetch(self, number: int, leases: Sequence[bytes]) -> bool:
        """Take what a shard says of some leases; whether it has answered."""
        return self._links.fetch(number, Call(self._calls.records, leases), self._part.unpack)


def _batches(leases: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [leases[start : start + _MOST_AT_ONCE] for start in range(0, len(leases), _MOST_AT_ONCE)]
