"""What the other files here share: whether Ray is here, and two ways into it, this process's core worker and the control service.

It is a file of its own so that `actors`, `workers` and `counts` need not import one another for it.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

from ..errors import RegistryUnavailableError

OLDEST = (2, 52)  # as in pyproject.toml
NEWEST_TRIED = (2, 60)  # as in constraints.txt


def global_worker() -> Any:
    """Ray's record of this process. None where Ray isn't imported, or is just being imported: by another thread, or in a frame below.

    Private: `ray._private.worker.global_worker`, seen since Ray 2.52.
    """
    return getattr(sys.modules.get("ray._private.worker"), "global_worker", None)


def connected() -> Any:
    """The native side of this process; None unless it is connected, and not as a Ray Client."""
    worker = global_worker()
    return worker.core_worker if worker is not None and worker.connected else None


# The core worker of the connection that this process is leaving, or has left last; see `leaving`. Replaced whole.
left: Any = None


def is_left(core: Any) -> bool:
    """Whether this process is leaving the connection of that core worker, or has left it."""
    return core is not None and core is left


def gone() -> RegistryUnavailableError:
    """The error of who needs the connection that is left."""
    return RegistryUnavailableError(
        "this process has left its Ray cluster, or is just leaving it: call ray.init(address=...) for the cluster, and try again"
    )


def is_imported() -> bool:
    """Whether this process has imported Ray. What tests put in its place, a stand-in or None, doesn't count."""
    return hasattr(sys.modules.get("ray"), "__path__")


def is_installed() -> bool:
    """Whether this Python has Ray, imported or not. Asked only where Ray is missed: to look takes 0.2 ms."""
    if is_imported() or sys.is_finalizing():
        return True
    try:
        return importlib.util.find_spec("ray") is not None
    except (ImportError, ValueError):  # a stand-in, or None, has been put in its place
        return False


def check_version(version: str) -> None:
    """Whether this Ray has what safe_refs needs of it.

    Raises:
        RegistryUnavailableError: it is too old.
    """
    parts = re.match(r"(\d+)\.(\d+)", version)
    if parts and (int(parts[1]), int(parts[2])) < OLDEST:
        raise RegistryUnavailableError(
            f"safe_refs needs Ray 2.52 or newer, and this is Ray {version}: pip install 'ray>=2.52'"
        )


def supported() -> str:
    """Which versions of Ray are supported, and which one this is; a sentence for errors and log lines."""
    import ray

    (major, oldest), (_, newest) = OLDEST, NEWEST_TRIED
    return f"safe_refs is tried with Ray {major}.{oldest} to {major}.{newest}, and this is Ray {ray.__version__}"


def check_basics(worker: Any) -> None:
    """Whether this Ray has the calls without which nothing works here. Each is tried, as a name alone proves little; 10 microseconds.

    Private: what `workers` says of each of them, seen since Ray 2.52. The key-value store is tried when it is asked; see `control`.

    Raises:
        RegistryUnavailableError: one is missing, or another one by now.
    """
    import ray

    core, what = worker.core_worker, "CoreWorker.get_worker_id"
    try:
        me = core.get_worker_id().binary()
        what = "Worker.current_cluster_and_job"
        ids = [each.binary() for each in worker.current_cluster_and_job]
        what = "CoreWorker.get_owner_address"
        with suppress(ValueError):  # the right answer for a reference that nobody owns
            ids = [core.get_owner_address(ray.ObjectRef(os.urandom(len(ray.ObjectRef.nil().binary()))))]
        if {*map(type, (me, *ids))} != {bytes} or len(ids) != 2:
            raise TypeError(f"{what} gives something else")
    except (AttributeError, LookupError, TypeError) as error:  # another may be a signal handler's
        raise unsupported(what, error) from error


def unsupported(what: str, error: Exception) -> RegistryUnavailableError:
    """The error for a private call that is missing, or that has become another one."""
    return RegistryUnavailableError(
        f"safe_refs can't work with this Ray: {what} is not what it needs ({error!r}). {supported()}; install one of these"
    )


def frames() -> dict[int, FrameType]:
    """Threads that are in Python code, by their idents: the innermost frame of each.

    Without the collector: where that runs in the middle of `sys._current_frames`, Python crashes or hangs (CPython issue 106883; seen
    with 3.11.7).
    """
    was_on = gc.isenabled()
    try:
        try:
            gc.disable()
            return sys._current_frames()
        finally:
            if was_on:
                gc.enable()
    finally:
        if was_on:
            gc.enable()  # once more: a signal handler may raise at any line


def core_worker() -> Any:
    """The native side of this process, which counts its references.

    Private: `ray._private.worker.global_worker.core_worker`, seen since Ray 2.52. Ray sets it at run time only, so that Ray's types
    don't know it. A Ray Client has none.

    Raises:
        RegistryUnavailableError: this process is leaving its cluster, or has left it.
    """
    core = getattr(global_worker(), "core_worker", None)
    if core is None or core is left:
        raise gone()
    return core


def accessor() -> Any:
    """An object that asks Ray's control service. Each question takes about 1 ms.

    Private: `ray._private.state`, seen since Ray 2.52 (the older versions of it have no `_connect_and_get_accessor`).
    """
    import ray

    state: Any = ray._private.state.state
    found = state._connect_and_get_accessor() if hasattr(state, "_connect_and_get_accessor") else None
    if found is None:
        state._really_init_global_state()
        found = state.global_state_accessor
    return found
