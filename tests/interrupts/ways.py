"""Ways to use safe_refs, for what goes through them line by line."""

from __future__ import annotations

import asyncio
import contextlib
import copyreg
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import safe_refs
from safe_refs._ray import control, requests
from safe_refs.registry import known

# For a call, also for each that follows an interruption. A borrower whose `dumps` was interrupted between loan and touch waits, in
# the next one of the same object, until `loans` has looked after the first: 2 s, and 4 s on a busy machine.
BOUND_S = 6.0

Made = list[Any]  # payloads and handles that a way has got, so that they can be ended, whatever comes in between


class Way(NamedTuple):
    """A way to use safe_refs.

    Attributes:
        act: the call, with what `begin` gave; it notes what it gets.
        begin: makes what the call needs, of a reference; as `act`.
        borrows: the reference is one that another process owns.
    """

    act: Callable[[Any, Made], Any]
    begin: Callable[[Any, Made], Any] = lambda ref, made: ref
    borrows: bool = False


def _dumps(ref: Any, made: Made) -> Any:
    made.append(safe_refs.dumps(ref))
    return made[-1]


def _scoped(ref: Any, made: Made) -> None:
    with safe_refs.scope(ttl=600):
        made.append(safe_refs.dumps(ref))


def _posted(ref: Any, made: Made) -> None:
    made.append(safe_refs.dumps(ref, wait=False))
    safe_refs.flush()


def _piped(ref: Any, made: Made) -> None:
    with safe_refs.pipeline():
        made.append(safe_refs.dumps(ref))


def _pinned(ref: Any, made: Made) -> None:
    made.append(safe_refs.pin(ref))
    made[-1].resolve()


def _many(ref: Any, made: Made) -> None:
    made.append(safe_refs.dumps_many([ref, [ref]]))
    safe_refs.loads_many(made[-1])


def _dump(ref: Any, made: Made) -> None:
    class File:
        def write(self, data: bytes) -> None:
            made.append(data)

    safe_refs.Pickler(File()).dump([ref])


async def _scoped_in_a_loop(ref: Any, made: Made) -> None:
    async with safe_refs.scope(ttl=600):
        made.append(safe_refs.dumps(ref))


_TABLE = dict(copyreg.dispatch_table)
_written = io.BytesIO()
_again = safe_refs.Pickler(_written)
_again.dispatch_table = _TABLE


def _dump_again(ref: Any, made: Made) -> None:
    assert _again.dispatch_table is _TABLE, "a dump that was interrupted has left a table of its own"
    _written.seek(0)
    _written.truncate()
    try:
        _again.dump([ref])
    finally:
        if _written.tell():
            made.append(_written.getvalue())


def _asked(ref: Any, made: Made) -> None:
    with contextlib.suppress(ValueError):  # there is no such actor
        control.named_actor("nobody's", "safe_refs", requests.soon(BOUND_S))


def _leave(ref: Any, made: Made) -> Any:
    for connection in list(known.sessions):
        known.drop(connection)
    return ref


WAYS = {
    "dumps": Way(_dumps),
    "borrowed": Way(_dumps, borrows=True),
    "loads": Way(lambda begun, made: safe_refs.loads(begun), _dumps),
    "release": Way(lambda begun, made: safe_refs.release(begun), _dumps),
    "take": Way(lambda begun, made: safe_refs.loads(begun, take=True), _dumps),
    "posted": Way(_posted),
    "pin": Way(_pinned),
    "scope": Way(_scoped),
    "pipeline": Way(_piped),
    "many": Way(_many),
    "pickler": Way(_dump),
    "first": Way(_dumps, _leave),
    "loop": Way(lambda ref, made: asyncio.run(_scoped_in_a_loop(ref, made))),
    "table": Way(_dump_again),
    "control": Way(_asked),
}
