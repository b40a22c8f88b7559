"""Answers to a `resolve` that come when nobody waits for them any more: a signal handler's exception has ended the wait.

What always holds: such an answer goes to who has asked to get it (`requests.Wanted.late`), in another thread, within the call's own
deadline; if none comes by then, nobody learns of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from .. import threads
from .._ray import objects
from ..config import Deadline
from .requests import Wanted
from .wire import Silence, split

logger = logging.getLogger("safe_refs")

Late = Callable[[Any], None]


class _Call(Protocol):
    """What this needs of `calls.Call`, which says what it is."""

    @property
    def late(self) -> Late | None:
        """Who gets the answer."""


def after(
    error: BaseException,
    calls: Mapping[int, _Call],
    waiting: dict[Any, int],
    replies: dict[int, Any],
    deadline: Deadline,
) -> None:
    """If it is a signal handler's exception that has ended the wait for calls, have a thread wait for the answers.

    Args:
        error: what has ended it.
        calls: by shard.
        waiting: the shards that have not answered, by the references of their answers. Emptied, as an error keeps its frames.
        replies: the answers of the others.
        deadline: of the calls.
    """
    # Ray's own wait makes a SystemError of some (seen with 2.60).
    is_a_signals = not isinstance(error, Exception) or isinstance(error, SystemError)
    if is_a_signals and any(call.late for call in calls.values()):
        threads.later(partial(_wait, calls, waiting.copy(), replies.copy(), deadline))
        waiting.clear()
        replies.clear()


def _wait(calls: Mapping[int, _Call], waiting: dict[Any, int], replies: dict[int, Any], deadline: Deadline) -> None:
    come(calls, replies)
    while waiting:
        ref, shard = waiting.popitem()
        try:
            come(calls, {shard: objects.get(ref, deadline.left_s())})
        except Exception as error:  # no answer in time, or none ever
            logger.debug("an answer that nobody waits for has not come: %r", error)


def come(calls: Mapping[int, _Call], replies: Mapping[int, Any]) -> None:
    """Pass answers on, by shard."""
    for shard, reply in replies.items():
        late = calls[shard].late
        if late is not None and not isinstance(reply, Silence):
            late(reply)


def of_rows(rows: Sequence[Wanted]) -> Late | None:
    """Where the answer to a `resolve` of several leases goes."""
    if all(row.late is None for row in rows):
        return None

    def late(reply: Any) -> None:
        found = split(*reply) if isinstance(reply, tuple) else []
        for row, refs in zip(rows, found):  # noqa: B905 # nothing, if the shard has decided nothing
            if refs is not None and row.late is not None:
                row.late(row, refs)

    return late
