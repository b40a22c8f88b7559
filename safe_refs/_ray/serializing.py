"""Ray's own serialization in this thread: whether it is under way, how to put it aside, and reducers of ours in its table.

Ray keeps what it knows of a serialization in thread-local state: whether it is in-band (an argument, a return value, `ray.put`), the
references that it has met so far, and the objects that it is opening. A call to Ray made in the middle of it, by a `__reduce__` say,
takes that state for its own: the references met so far go to the wrong object, and the next ones count as out of band, which pins or
refuses them (seen with Ray 2.60). So safe_refs puts that state aside before it calls Ray.

While Ray opens a value, it also holds a lock of the process (`function_actor_manager.lock`), without which no other thread can open
a value: neither one of ours, nor the thread that receives all of Ray's answers, when it opens a value that is awaited. A thread that
waits for an answer while it holds that lock keeps the answer from coming. So the lock is put aside, too; but not where this thread
also holds `Worker.lock`, which Ray takes after the other one. A thread that holds one of the two (`holds_lock`) waits for no thread
of ours, but makes the call itself.

Private: `SerializationContext`, its `_thread_local`, `_register_cloudpickle_reducer` and `_serialize_to_pickle5`; `pickle_dumps`;
`CloudPickler.dispatch`; the lock; the name of the thread that gets Ray's answers. Tried with Ray 2.60; Ray's source has had the names
since before 2.38. Without the table, Ray would pin the references that an object pickles by `ray.cloudpickle` in its
`__getstate__`, and no lease would hold them. Without the state, a `dumps` in the middle of Ray's serialization would lose references
around it.

What always holds: Ray's own serialization gets from its table what it would get without safe_refs.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from ..errors import RegistryUnavailableError
from .native import global_worker

A = TypeVar("A")
P = ParamSpec("P")
Reduce = Callable[[Any], Any]

# The state of Ray's serialization in each thread: `any(map(vars(local).get, MARKS))` says whether one is under way in this thread.
# Callers write that out, as a function would be one more step on the way of each reference. `ray.init` makes another state.
local = threading.local()
MARKS = ("in_band", "object_ref_stack")

_PICKLERS = ("safe_refs.engine", "safe_refs.pickler")  # the modules that call picklers of ours
_RAYS = ("_serialize_to_pickle5", "pickle_dumps")  # the functions by which Ray pickles for itself
_ANSWERS = "worker.io"  # the thread that receives Ray's answers


def is_innermost() -> bool:
    """Whether the innermost pickling of this thread is one of Ray's, in-band, and not one of ours inside of that."""
    # To ask for an attribute that isn't there would take ten times as long.
    return bool(vars(local).get("in_band")) and _is_rays()


def _is_rays() -> bool:
    """Whether Ray began the innermost pickling, and not safe_refs: the frames of this thread say so.

    Ray pickles values in-band, and functions and actors' classes that are called for the first time.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module in _PICKLERS:
            return False
        if frame.f_code.co_name in _RAYS and module.startswith("ray."):
            return True
        frame = frame.f_back
    return True


def ask_first(reducers: Mapping[type, Reduce], wanted: Callable[[], bool]) -> None:
    """Have `ray.cloudpickle` use these reducers in place of Ray's own while `wanted()` is true, unless Ray itself called it.

    Ray registers its own anew after each `ray.init`. So the function by which it does that is wrapped, and wraps each of them.
    """
    import ray

    class_: Any = ray._private.serialization.SerializationContext
    table = ray.cloudpickle.CloudPickler.dispatch
    register = class_._register_cloudpickle_reducer

    def wrapped(kind: type, rays: Reduce) -> Reduce:
        ours = reducers.get(kind)
        if ours is None or hasattr(rays, "asks_first"):
            return rays

        @functools.wraps(rays)
        def reduce(reference: Any) -> Any:
            return ours(reference) if wanted() and not _is_rays() else rays(reference)

        reduce.asks_first = ours  # type: ignore[attr-defined] # a mark
        return reduce

    @functools.wraps(register)
    def register_wrapped(context: Any, kind: type, rays: Reduce) -> None:
        global local
        local = context._thread_local
        register(context, kind, wrapped(kind, rays))

    class_._register_cloudpickle_reducer = register_wrapped
    look()
    for kind in reducers:
        rays = table.get(kind)
        # Where Ray has registered nothing yet, the table gives what stands in `copyreg`: that is ours already.
        if rays is not None and rays.__module__ == class_.__module__:
            table[kind] = wrapped(kind, rays)


def look() -> None:
    """Look up the state of Ray's serialization. A process may use safe_refs for the first time in the middle of one."""
    global local
    for context in list(getattr(global_worker(), "serialization_context_map", {}).values()):
        local = context._thread_local


@contextmanager
def put_aside() -> Iterator[None]:
    """A context manager: inside, Ray takes it that no serialization is under way in this thread.

    Raises:
        RegistryUnavailableError: this thread opens a value for an `await`, or another future. Ray has one thread for that, which also
            receives all answers: while that one waits, no answer can come.
    """
    import ray

    state = vars(local)
    worker: Any = ray._private.worker.global_worker
    lock = worker.function_actor_manager.lock
    depth = None
    opens = bool(state.get("object_ref_stack"))
    if opens and _gets_answers():
        raise RegistryUnavailableError(
            "the registry can't be asked here: Ray is opening a value for an `await` or another future, in the thread that gets all "
            "of Ray's answers; get the value by ray.get (in an event loop: await asyncio.to_thread(ray.get, ref)), or load with "
            "resolve=False"
        )
    saved = dict(state)
    try:
        try:
            state.clear()
            # As `threading.Condition` does with its lock, however often this thread has taken it. A signal handler may come while
            # Ray has `worker.lock` too, which it takes after this one: then the order must stay.
            if opens and lock._is_owned() and not worker.lock._is_owned():
                depth = lock._release_save()
            yield
        finally:
            _take_back(lock, depth, state, saved)
    finally:
        _take_back(lock, depth, state, saved)  # once more: a signal handler may raise at any line


def _take_back(lock: Any, depth: Any, state: dict[str, Any], saved: dict[str, Any]) -> None:
    """Take a lock as often as it was released, if it was and isn't taken; and put the state back."""
    try:
        if depth is not None and not lock._is_owned():
            lock._acquire_restore(depth)
    finally:
        state.clear()
        state.update(saved)


@contextmanager
def in_rays_order() -> Iterator[None]:
    """A context manager: inside, an answer may be opened. For that Ray takes `function_actor_manager.lock`, and then `Worker.lock`.

    A destructor or a signal handler may run where this thread holds only the second lock. If it then asked for the first, it could
    wait for another thread that holds that one and waits for the second.
    """
    ray = sys.modules["ray"]
    worker: Any = ray._private.worker.global_worker
    depth = None
    try:
        if worker.lock._is_owned() and not worker.function_actor_manager.lock._is_owned():
            depth = worker.lock._release_save()
        yield
    finally:
        if depth is not None:
            worker.lock._acquire_restore(depth)


def holds_lock() -> bool:
    """Whether this thread is in the middle of code of Ray's that other threads here can't enter meanwhile.

    A destructor, a signal handler, or a `__setstate__` of what Ray opens may run there.

    Private: the two locks, see above, and that they are `threading.RLock`, which knows its owner; seen since Ray 2.52. Without it,
    such a call could wait for a thread of ours that waits for this one, until its deadline.
    """
    worker = global_worker()
    locks = [getattr(worker, "lock", None), getattr(getattr(worker, "function_actor_manager", None), "lock", None)]
    return any(lock is not None and lock._is_owned() for lock in locks)


def outside(function: Callable[P, A]) -> Callable[P, A]:
    """A function that puts Ray's serialization aside where one is under way, and raises what `put_aside` raises."""

    @functools.wraps(function)
    def calls(*args: P.args, **kwargs: P.kwargs) -> A:
        look()
        if any(map(vars(local).get, MARKS)):
            with put_aside():
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return calls


def _gets_answers() -> bool:
    """Whether this is the thread that receives Ray's answers. Linux knows its name; on other systems the answer is always no."""
    if threading.current_thread() is threading.main_thread():
        return False
    try:
        return Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text().strip() == _ANSWERS
    except OSError:
        return False
