"""What a relay was lent, and whose owner did not learn of it, does not stay there."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs.anchoring import relays
from tests.support.actors import Borrower
from tests.support.anchoring import counted
from tests.support.cluster import as_actor
from tests.support.processes import dies
from tests.support.store import is_empty
from tests.support.waiting import comes

FORGOTTEN_S = 15.0


class Slow:
    def wait(self, refs: list[Any]) -> int:
        """A call that has references as arguments for a while."""
        time.sleep(1)
        return len(refs)


class Forwarder(Borrower):
    """Pins references at moments when Ray can't report them to their owners."""

    def pin_in_flight(self, slow: Any) -> bytes:
        """They are the arguments of a call that goes on for longer than `dumps` waits."""
        self.reply = slow.wait.remote(self.refs)
        return safe_refs.dumps(self.refs)

    def pin_anew(self, payloads: list[bytes]) -> list[bytes]:
        """It has just got them, and their owners don't know it yet."""
        made: list[bytes] = []
        for payload in payloads:
            self.refs.append(safe_refs.loads(payload))
            made.append(safe_refs.dumps(self.refs[-1]))
        return made


def left(ids: set[str]) -> set[str]:
    """Those of these objects that the clients' relay still counts."""
    relay = relays.Relays().handle(relays.FOR_CLIENTS[0])
    return ids.intersection(ray.get(relay.__ray_call__.remote(lambda _: counted()), timeout=30))


@pytest.mark.parametrize("how", ["in flight", "anew"])
def test_a_relay_forgets_what_it_was_lent(cluster: str, how: str) -> None:
    """A few seconds later, although who lent it keeps it; and if that process is killed then, nothing stays."""
    maker = as_actor(Forwarder).options(max_restarts=0).remote()
    ray.get(maker.keep.remote([ray.put(0)]), timeout=60)
    safe_refs.release(ray.get(maker.dumps.remote(), timeout=60))  # it knows its relay by now
    refs = [ray.put(number) for number in range(20)]
    ids = {ref.hex() for ref in refs}
    payloads = [safe_refs.dumps(ref) for ref in refs]
    if how == "in flight":
        pid = ray.get(maker.keep.remote(refs), timeout=60)
        payloads.append(ray.get(maker.pin_in_flight.remote(as_actor(Slow).remote()), timeout=60))
    else:
        pid = ray.get(maker.keep.remote([]), timeout=60)
        payloads += ray.get(maker.pin_anew.remote(payloads), timeout=60)
    comes(lambda: not left(ids), FORGOTTEN_S)
    assert left(ids) == set()
    os.kill(pid, signal.SIGKILL)
    assert dies(pid)
    safe_refs.release(payloads)
    del refs
    assert is_empty(10)


@pytest.mark.long
def test_a_relay_that_remembers_much_ends_soon(cluster: str) -> None:
    """What was released right after who lent it was killed, no shard can clear up: of that a relay keeps no more than a thousand."""

    def end_soon(relay: relays.SafeRefsRelay) -> bool:
        relays._MOST_REMEMBERED = 0
        return relay.hello()

    relay = relays.Relays().handle(relays.FOR_CLIENTS[1])  # the spare: nobody else has it stay
    pid = ray.get(relay.where.remote(), timeout=60)[1]
    assert ray.get(relay.__ray_call__.remote(end_soon), timeout=60)
    assert dies(pid)
