"""How this process learns that it is about to end, or to leave Ray, while Ray still answers."""

from __future__ import annotations

import atexit
import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from . import control, leaving
from .native import core_worker

logger = logging.getLogger("safe_refs")


_DEAD = 4  # `ActorTableData.ActorState`


def has_called_exit() -> bool:
    """Whether this actor has called `exit_actor`. Asks nobody, so that it may be called often.

    Private: `CoreWorker.get_current_actor_should_exit`, seen since Ray 2.52. Without it, leases that depend on an actor are lost when
    it calls `exit_actor`.
    """
    return bool(core_worker().get_current_actor_should_exit())


def is_marked_dead() -> bool:
    """Whether Ray's control service says that this actor is dead: its last handle was dropped. About 1 ms.

    It asks the one control service of the whole cluster. So ask at most once a second, and delay the actor's end for longer than
    that, or the end may come between two look-ups.

    Private: the state in the actor's row, see `control.actor_row`. Without it, leases that depend on an actor are lost when its last
    handle is dropped.

    Raises:
        RegistryUnavailableError: the control service doesn't answer. Then it ends no actor, either.
    """
    import ray

    me = ray.get_runtime_context().get_actor_id()
    row = control.actor_row(ray.ActorID.from_hex(me)) if me else None
    return row is not None and row.state == _DEAD


# What to call when this process ends in order, in this order. Bound: one for each wing that has one (or two, if two threads come at
# once: it is called once). No lock: to add one is one step for the interpreter.
_hooks: list[Callable[[], None]] = []


def call_before_exit(hook: Callable[[], None], *, first: bool = False) -> None:
    """Call `hook` when this process ends in order or leaves Ray, while Ray still answers; once, however often the hook is given.

    An order is needed where one hook makes work for another. `atexit` calls last what was registered first, and two wings register
    when each has something to do, so in any order. Hooks with `first` are called before all that have it not, whenever they came.

    The orderly ends: a worker calls `exit_actor` or gets SIGTERM; a driver calls `ray.shutdown`, or its program ends. In the first
    two cases the hooks may be called twice, as `atexit` follows.

    Private: the first two call `raise_sys_exit_with_custom_error_message`, and each looks it up by name in its own module
    (`ray.actor`, `ray._private.worker`), so that it can be replaced. `ray.shutdown`, whoever calls it by whatever name, does so with
    `disconnect` of `ray._private.worker`; a Ray Client's, with the method `Worker.close` of `ray.util.client.worker`. All seen since
    Ray 2.52. Ray has no hook that runs before it tells owners that this process is gone: `__ray_shutdown__` and `atexit` come later.
    Without it, leases that depend on a process are lost when it ends in that way, and so are pins that are not acknowledged yet.
    """
    # First that they are called, and then that there is one: an interruption in between leaves nothing half done.
    watch()
    if hook in _hooks:
        return
    # Ray's own `atexit` was registered before, when Ray was imported, and so comes after this.
    atexit.unregister(call_hooks)
    atexit.register(call_hooks)
    if first:
        _hooks.insert(0, hook)
    else:
        _hooks.append(hook)


def watch() -> None:
    """Have Ray call the hooks, and `leaving`. What has been replaced already stays; a process may become a Ray Client later."""
    import ray

    leaving.watch()

    worker, client = ray._private.worker, getattr(sys.modules.get("ray.util.client.worker"), "Worker", None)
    for place, name, before in (
        (ray.actor, "raise_sys_exit_with_custom_error_message", _before_exit),
        (worker, "raise_sys_exit_with_custom_error_message", _before_exit),
        (worker, "disconnect", _before_leaving),
        (client, "close", _before_client_leaves),
    ):
        original = getattr(place, name, None)
        if original is not None and not hasattr(original, "calls_hooks"):
            setattr(place, name, _first(before, original))


def _before_exit(*_: Any) -> None:
    call_hooks()


def _before_leaving(exiting_interpreter: bool = False) -> None:
    if not exiting_interpreter:  # at the interpreter's end `atexit` has called them
        call_hooks()
    leaving.leave()


def _before_client_leaves(worker: Any) -> None:
    if worker.is_connected():  # otherwise it has lost its server, and Ray clears up
        call_hooks()
    leaving.leave_as_client()


def ends_cluster() -> bool:
    """Whether the cluster ends with this process, as its `ray.init` has started it: then there is nobody to hand over to.

    Private: `ray._private.worker._global_node` and its `is_head`, seen since Ray 2.52. Without it, such an end takes longer, for
    nothing.
    """
    import ray

    node = getattr(ray._private.worker, "_global_node", None)
    return node is not None and bool(node.is_head())


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


def _first(hook: Callable[..., None], then: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(then)
    def both(*args: Any, **kwargs: Any) -> Any:
        hook(*args, **kwargs)
        found = then(*args, **kwargs)
        if hook is _before_leaving:
            leaving.take_down()
        return found

    both.calls_hooks = True  # type: ignore[attr-defined] # a mark, see above
    return both
