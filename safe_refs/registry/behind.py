"""What a process does when a shard is behind with its anchoring, and hands out nothing for a moment (`NotNow.BEHIND`).

What always holds: nobody waits for that for more than ten seconds, or half of its time; what other shards have granted meanwhile is
granted once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from .._ray import requests
from ..config import Deadline
from . import late
from .calls import LONGEST_WAIT_S, Call, Registry
from .shard import Shard
from .wire import NotNow, ResolveCall, Silence

logger = logging.getLogger("safe_refs")

A = TypeVar("A")

_PAUSE_S = 0.03
_LONGEST_S = 10.0


def insists(deadline: Deadline) -> bool:
    """Whether a caller has waited for so long that shards are to answer, be they behind or not."""
    return deadline.timeout_s - deadline.left_s() > min(_LONGEST_S, deadline.timeout_s / 2)


def ask(
    registry: Registry,
    calls: Callable[[], Mapping[int, Call[A]]],
    deadline: Deadline,
    *,
    patience_s: float = LONGEST_WAIT_S,
) -> dict[int, A | Silence]:
    """`Registry.ask`, and again those shards that are behind, while there is time; `calls` makes them for each time."""
    once: Callable[[Mapping[int, Call[A]], Deadline], dict[int, A | Silence]] = partial(
        registry.ask, patience_s=patience_s
    )
    asked, until = calls(), deadline
    left: Collection[int] = asked
    replies: dict[int, A | Silence] = {}
    try:
        while True:
            replies |= once({shard: asked[shard] for shard in left}, until)
            left = [shard for shard, reply in replies.items() if reply is NotNow.BEHIND]
            if not left or deadline.left_s() <= _PAUSE_S:
                return replies
            time.sleep(_PAUSE_S)
            # The others have answered: one that doesn't is not waited for any longer than if they were asked together.
            asked, until = calls(), Deadline(min(deadline.at, time.monotonic() + patience_s), deadline.timeout_s)
    except BaseException as error:
        if replies and isinstance(error, Exception) and not isinstance(error, SystemError):  # as in `late`
            logger.debug("shards that were behind can't be asked again", exc_info=True)  # who asks alone learns why
            return replies
        late.after(error, asked, {}, replies, deadline)
        replies.clear()  # the error keeps this frame
        raise


def keep_pace(registry: Registry, leases: Sequence[bytes], deadline: Deadline) -> None:
    """Wait while whoever holds these leases would hand out nothing. A shard that doesn't respond is not waited for.

    Raises:
        NoRegistryError: there is none.
    """
    asks = registry.verbs(start=False, deadline=deadline)
    calls = dict.fromkeys(asks.by_shard(leases), Call(Shard.resolve, ResolveCall(asks.layout.version, [], True)))
    while calls and not insists(deadline):
        soon = requests.soon(min(requests.PATIENCE_S, deadline.left_s()))
        replies: Mapping[int, Any] = registry.ask(calls, soon)
        calls = {shard: call for shard, call in calls.items() if replies.get(shard) is NotNow.BEHIND}
        time.sleep(_PAUSE_S if calls else 0)
