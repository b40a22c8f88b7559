"""How this process learns that it is about to end, while Ray still answers."""

from __future__ import annotations

import atexit
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

from .native import core_worker

logger = logging.getLogger("safe_refs")


def has_called_exit() -> bool:
    """Whether this actor has called `exit_actor`. Asks nobody, so that it may be called often.

    Private: `CoreWorker.get_current_actor_should_exit`, seen since Ray 2.52. Without it, leases that depend on an actor are lost when
    it calls `exit_actor`.
    """
    return bool(core_worker().get_current_actor_should_exit())


def is_marked_dead() -> bool:
    """Whether Ray's control store has this actor for dead: its last handle was dropped. About 1 ms.

    It asks the one control service of the whole cluster. So ask at most once a second, and delay the actor's end for longer than
    that, or the end may come between two look-ups.

    Private: the actor's row in the control store (`ray._private.state.actors`), seen since Ray 2.52. Without it, leases that depend
    on an actor are lost when its last handle is dropped.
    """
    import ray

    row = ray._private.state.actors(ray.get_runtime_context().get_actor_id())
    return bool(row.get("State") == "DEAD")


# What to call when this process ends in order, in this order. Bound: one for each wing that has one. The lock guards changes; the
# list is replaced whole.
_hooks: list[Callable[[], None]] = []
_hooks_lock = threading.RLock()  # a signal handler may interrupt its holder, and call a `dumps` that comes here


def call_before_exit(hook: Callable[[], None], *, first: bool = False) -> None:
    """Call `hook` when this process ends in order, while Ray still answers; once for each hook, however often it is given.

    An order is needed where one hook makes work for another. `atexit` calls last what was registered first, and two wings register
    when each has something to do, so in any order. Hooks with `first` are called before all that have it not, whenever they came.

    The orderly ends: a worker calls `exit_actor` or gets SIGTERM; a driver's program ends. In the first two cases the hooks may be
    called twice, as `atexit` follows.

    Private: both call `raise_sys_exit_with_custom_error_message`, and each looks it up by name in its own module (`ray.actor`,
    `ray._private.worker`), so that it can be replaced; seen since Ray 2.52. Ray has no hook that runs before it tells owners that
    this process is gone: `__ray_shutdown__` and `atexit` come later. Without it, leases that depend on a process are lost when it
    ends in one of these two ways.
    """
    global _hooks
    import ray

    with _hooks_lock:
        known = _hooks
        if hook not in known:
            _hooks = [hook, *known] if first else [*known, hook]
        if known:
            return
    # Ray's own `atexit` was registered before, when Ray was imported, and so comes after this.
    atexit.register(call_hooks)
    for module in (ray.actor, ray._private.worker):
        original = getattr(module, "raise_sys_exit_with_custom_error_message", None)
        if original is not None:
            setattr(module, "raise_sys_exit_with_custom_error_message", _first(call_hooks, original))  # noqa: B010 # Ray's types hide it


def call_hooks() -> None:
    """Call all hooks, in their order; one that a hook registers as it is called, too. For a thread that sees the end coming."""
    called: set[Callable[[], None]] = set()
    stop: BaseException | None = None
    while (hook := next((each for each in _hooks if each not in called), None)) is not None:
        called.add(hook)
        try:
            hook()
        except Exception:
            logger.exception("a hook before the end of this process has failed")  # the others are called all the same
        except BaseException as error:  # Ctrl-C ends one hook's wait, not what the others have to do
            stop = error
    if stop is not None:
        raise stop


def _first(hook: Callable[[], None], then: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(then)
    def both(*args: Any, **kwargs: Any) -> Any:
        hook()
        return then(*args, **kwargs)

    return both
