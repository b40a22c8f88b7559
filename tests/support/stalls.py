"""Ray's control service, stopped for a while; and what each of our calls does meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray

import safe_refs
from safe_refs import aio

TIMEOUT_S = 2.0  # that each call is given
LITTLE_S = 5.0  # that it may take longer, on a busy machine; what waits for the control service takes 25 s
_LONGEST_S = 25.0  # no test leaves it stopped for longer


class Call(NamedTuple):
    """What came of a call: its name, how long it took, and what it said: the name of an error, or `ok`."""

    name: str
    took_s: float
    said: str

    @property
    def is_fine(self) -> bool:
        """Whether it ended in time, with what was asked for or the error for a registry that can't be reached."""
        return self.took_s < TIMEOUT_S + LITTLE_S and self.said in ("ok", "RegistryUnavailableError")


@contextmanager
def stalled(longest_s: float = _LONGEST_S) -> Iterator[threading.Event]:
    """Ray's control service, of the session's Ray, answers nobody while this lasts, or for `longest_s`; the event says so then."""
    node: Any = ray._private.worker._global_node
    pid = node.all_processes["gcs_server"][0].process.pid
    over = threading.Event()

    def go_on() -> None:
        os.kill(pid, signal.SIGCONT)
        over.set()

    back = threading.Timer(longest_s, go_on)
    back.daemon = True
    os.kill(pid, signal.SIGSTOP)
    back.start()
    try:
        yield over
    finally:
        back.cancel()
        go_on()


def timed(name: str, call: Callable[[], Any]) -> Call:
    """Make a call, and say what came of it."""
    begun, said = time.monotonic(), "ok"
    try:
        call()
    except Exception as error:
        said = type(error).__name__
    return Call(name, time.monotonic() - begun, said)


def every_call(payload: bytes, doomed: bytes) -> list[Call]:
    """All that asks the registry, each by a thread of its own, all at once. `SAFE_REFS_TIMEOUT` has to be `TIMEOUT_S`.

    Args:
        payload: of a lease that lives on.
        doomed: of one that doesn't.
    """
    handle = safe_refs.inspect(payload).handles[0]
    own, lent = ray.put(1), [ray.put(2)]

    async def loop() -> None:
        await aio.loads(payload, timeout=TIMEOUT_S)

    async def out() -> None:
        safe_refs.release(await aio.dumps(own, ttl=60), timeout=TIMEOUT_S)

    calls: dict[str, Callable[[], Any]] = {
        "loads": lambda: safe_refs.loads(payload, timeout=TIMEOUT_S),
        "resolve": lambda: handle.resolve(timeout=TIMEOUT_S),
        "renew": lambda: safe_refs.renew(payload, 600, timeout=TIMEOUT_S),
        "expires_in_s": lambda: safe_refs.expires_in_s(payload, timeout=TIMEOUT_S),
        "release": lambda: safe_refs.release(doomed, timeout=TIMEOUT_S),
        "leases": lambda: safe_refs.leases(timeout=TIMEOUT_S),
        "stats": lambda: safe_refs.stats(timeout=TIMEOUT_S),
        "dumps": lambda: safe_refs.dumps(own, ttl=60, wait=True),
        "dumps without waiting": lambda: safe_refs.dumps(lent, ttl=60),
        "pin": lambda: safe_refs.pin(own, ttl=60),
        "init": lambda: safe_refs.init(),
        "aio.loads": lambda: asyncio.run(loop()),
        "aio.dumps": lambda: asyncio.run(out()),
    }
    found: list[Call] = []
    threads = [
        threading.Thread(target=lambda item=item: found.append(timed(*item)), daemon=True) for item in calls.items()
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 2 * TIMEOUT_S + LITTLE_S
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))
    missing = calls.keys() - {call.name for call in found}
    return [*found, *(Call(name, float("inf"), "no answer") for name in missing)]
