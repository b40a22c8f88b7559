"""Classes of the actors whose handles come from elsewhere.

When a process unpickles an actor's handle and doesn't have the actor's class, Ray asks its control service for the class. It waits
without a limit, and meanwhile holds a lock that every `ray.get` of the process needs. This module has Ray ask here instead:

- The classes of our own actors are imported.
- Our own actors only pass on handles of users' actors. They open them without asking for the classes.
- If an answer of our actors has a handle of a user's actor in it, the thread asks for the class, and waits briefly. If the class
  doesn't come, the answer is left unopened. The thread waits for the class without the lock, and then opens the answer again.

Private: `FunctionActorManager._load_actor_class_from_gcs` (of `ray._private.function_manager`), seen since Ray 2.52. It is replaced
by a function that gets the class first and then calls the original, which finds it there. Without it, opening such a handle waits for
the control service without a limit.

What always holds: handles that the user opens, by `ray.get` or as arguments, are opened as ever.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from ..config import Deadline
from ..errors import RegistryUnavailableError
from . import control, requests

T = TypeVar("T")

_BRIEF_S = 1.0  # for a class while Ray's lock is held
_OURS = "safe_refs."  # begins the modules of our own actors' classes


class _Thread(threading.local):
    """What this thread could not open an answer for.

    Attributes:
        missing: key of the class that was not there in time; None if none was missing.
    """

    missing: bytes | None = None


_thread = _Thread()
# Classes that were fetched, and that Ray hasn't loaded yet, by key. Bound: one for each thread that opens an answer. No lock: each
# step on it is atomic, and if another thread has taken a class out, it is fetched again.
_fetched: dict[bytes, bytes | None] = {}
_is_watching = False
_passes_on = False  # this process is an actor of ours


def _begin_anew() -> None:
    """A forked child has none of the threads."""
    _fetched.clear()


os.register_at_fork(after_in_child=_begin_anew)


def serve() -> None:
    """Begin to serve, in an actor of ours: this thread answers its calls, and the process only passes on handles of users' actors.

    In a process that is no actor this does nothing.
    """
    global _passes_on
    import ray

    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        _passes_on = True
        requests.answers_calls()
        watch()


def watch() -> None:
    """Have Ray ask here for the classes of actors whose handles are opened."""
    global _is_watching
    if _is_watching:
        return
    from ray._private.function_manager import FunctionActorManager as Manager

    original = getattr(Manager, "_load_actor_class_from_gcs", None)
    if original is not None and not hasattr(original, "__wrapped__"):

        @functools.wraps(original)
        def watched(manager: Any, job_id: Any, descriptor: Any) -> type:
            return _class_of(manager, original, job_id, descriptor)

        setattr(Manager, "_load_actor_class_from_gcs", watched)  # noqa: B010 # mypy knows no such assignment
    _is_watching = True


def opened(fetch: Callable[[float], T], timeout_s: float) -> T:
    """Fetch answers of our own actors, which may have handles of users' actors in them.

    Args:
        fetch: `ray.get` of the answers; its argument is a timeout in seconds.
        timeout_s: for the answers and the classes together.

    Raises:
        RegistryUnavailableError: a class did not come in time.
        Exception: what `fetch` raises.
    """
    if not _is_watching:
        watch()
    if requests.this_thread.opens:
        return fetch(timeout_s)
    begun = time.monotonic()
    try:
        return requests.opening(lambda: fetch(timeout_s))
    except Exception as error:
        # Whatever Ray makes of a class that is missing: `_thread.missing` says whether that was it.
        if _thread.missing is None:
            raised = _raised_meanwhile(error)
            if raised is None:
                raise
            raise raised from None
    deadline, (key, _thread.missing) = Deadline(begun + timeout_s, timeout_s), (_thread.missing, None)
    _fetched[key] = control.class_in_store(key, deadline)
    try:
        return opened(fetch, deadline.left_s())  # it may lack another class
    finally:
        _fetched.pop(key, None)  # another thread may have loaded the class meanwhile


def _raised_meanwhile(error: Exception) -> BaseException | None:
    """What a signal handler has raised while Ray opened an answer of ours: Ray takes that for a value that can't be opened.

    A handler's error comes from a frame of the handler's. Others come from Ray's frames: the class of an actor whose job has ended is
    gone, say.

    Private: `RaySystemError.client_exc`, seen since Ray 2.52. Without it, Ray's error comes in place of the handler's.
    """
    found: BaseException | None = getattr(error, "client_exc", None)
    while found is not None and type(found).__module__.startswith("ray."):
        found = found.__context__
    frames = list(traceback.walk_tb(found.__traceback__)) if found is not None else []
    origin = str(frames[-1][0].f_globals.get("__name__")) if frames else "ray"
    return None if origin.partition(".")[0] in ("ray", "safe_refs", "pickle") else found


def _class_of(manager: Any, original: Callable[..., type], job_id: Any, descriptor: Any) -> type:
    """The class of an actor whose handle is being opened.

    Args:
        manager: Ray's, of this process's classes.
        original: the manager's own method, which asks without a limit.
        job_id: the actor's job.
        descriptor: names the class.

    Raises:
        RegistryUnavailableError: the class did not come in time. Ray puts an error of its own in the place of the answer.
    """
    opens = requests.this_thread.opens
    if (opens or _passes_on) and descriptor.module_name.startswith(_OURS):
        found: type | None = manager._load_actor_class_from_local(descriptor)
        if found is not None:
            return found
    if _passes_on:
        return type(descriptor.class_name, (), {"__module__": descriptor.module_name})
    if not opens:
        return original(manager, job_id, descriptor)
    from ray._private.function_manager import make_function_table_key

    key = make_function_table_key(b"ActorClass", job_id, descriptor.function_id.binary())
    if key not in _fetched:
        try:
            _fetched[key] = control.class_in_store(key, requests.soon(_BRIEF_S))
        except RegistryUnavailableError:
            _thread.missing = key
            raise
    return original(_Answered(manager, _fetched.pop(key)), job_id, descriptor)


class _Answered:
    """Stands in for Ray's manager of classes, and for its client of the control service, which has answered already.

    Args:
        manager: Ray's own; it does all the rest.
        answer: what the control service has said: the class, pickled, or None.
    """

    def __init__(self, manager: Any, answer: bytes | None) -> None:
        self._manager = manager
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        return self if name in ("_worker", "gcs_client") else getattr(self._manager, name)

    def internal_kv_get(self, *_: Any, **__: Any) -> bytes | None:
        """The answer."""
        return self._answer
