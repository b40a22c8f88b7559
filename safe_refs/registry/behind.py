"""What a process does when a shard is behind with its anchoring, and hands out nothing for a moment (`NotNow.BEHIND`).

What always holds: what other shards have granted meanwhile is granted once; every wait ends by its deadline.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
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


def ask(
    registry: Registry, calls: Mapping[int, Call[A]], deadline: Deadline, *, patience_s: float = LONGEST_WAIT_S
) -> dict[int, A | Silence]:
    """`Registry.ask`, and again those shards that are behind, while there is time; BEHIND is the answer of those that still are."""
    replies = registry.ask(calls, deadline, patience_s=patience_s)
    behind = _behind(calls, replies)
    try:
        while behind and deadline.left_s() > _PAUSE_S:
            time.sleep(_PAUSE_S)
            for shard, reply in registry.ask(behind, deadline, patience_s=patience_s).items():
                replies[shard] = reply
            behind = _behind(behind, replies)
    except Exception:
        logger.debug("shards that were behind can't be asked again", exc_info=True)  # who asks alone learns why
    except BaseException as error:
        late.after(error, calls, {}, replies, deadline)
        raise
    return replies


def keep_pace(registry: Registry, leases: Sequence[bytes], deadline: Deadline) -> None:
    """Wait while whoever holds these leases would hand out nothing. A shard that doesn't respond is not waited for.

    Raises:
        NoRegistryError: there is none.
    """
    asks = registry.verbs(start=False, deadline=deadline)
    calls = dict.fromkeys(asks.by_shard(leases), Call(Shard.resolve, ResolveCall(asks.layout.version, [], True)))
    while calls and not deadline.is_over():
        soon = requests.soon(min(requests.PATIENCE_S, deadline.left_s()))
        replies: Mapping[int, Any] = registry.ask(calls, soon)
        calls = _behind(calls, replies)
        time.sleep(_PAUSE_S if calls else 0)


def _behind(calls: Mapping[int, Call[A]], replies: Mapping[int, object]) -> dict[int, Call[A]]:
    return {shard: call for shard, call in calls.items() if replies.get(shard) is NotNow.BEHIND}
