"""How this process leaves a cluster (`ray.shutdown`, the end of a script): whom Ray is kept from meanwhile, and afterwards.

Ray takes its native side down without waiting for anybody. A thread in the middle of a call then never returns from it, or the call
reads freed memory, or it ends the process. Afterwards most of Ray's functions start a new Ray if they are called. So:

    leave ── no call of ours begins any more ── sessions end: who waits gets an error ── calls under way end ── Ray is taken down

- Most of Ray's functions begin with a hook, which starts a Ray if there is none. `watch` replaces it: where a line of ours has called
  Ray, it raises, as soon as this process is leaving. Calls that don't go through the hook stand in `_ray`, and look at `native.left`.
- Long waits for Ray are made in short pieces (`objects`, `requests`), so that they end soon.
- `leave` looks at the frames of all threads, and waits for those that are in `_ray`, or in Ray called by us.
- To drop a reference is a call to Ray, too. Where another thread does so while Ray is taken down, Ray ends the process; a moment
  later, when there is no core worker any more, it passes over that. So `take_down` removes the core worker first.

What always holds: from `leave` on, nothing of ours calls Ray by the connection that is left, and nothing of ours ever starts a Ray.
A call that neither ends nor can be ended (the control service is silent) is waited for briefly; then Ray goes nevertheless.

Private: `auto_init_ray`, which `ray._private.auto_init_hook` looks up by name; seen since Ray 2.52. Without it, a call of ours could
start a Ray in the moment when another thread leaves the cluster. And `CoreWorker.shutdown_driver`, which `ray.shutdown`
calls if `Worker.core_worker` is there; seen since the same version. `exits` says by what `leave` itself is called.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from types import FrameType
from typing import Any

from .. import callers
from . import native, workers

_DRAINS_S = 2.0  # for the calls under way
_HERE = str(Path(__file__).parent)  # where calls stand that don't go through Ray's hook

# Ends what is kept for the connection; its argument says whether as a Ray Client. It doesn't wait. Set by `registry.known`.
end_session: Callable[[bool], None] | None = None


def leave() -> None:
    """This process leaves its cluster now: see the module. If a signal handler's exception ends this, it stays.

    What needs Ray once more has been called before.
    """
    core = native.connected()
    if core is None:
        return
    try:
        native.left = core
        if end_session is not None:
            end_session(False)
        until = time.monotonic() + _DRAINS_S
        while True:
            workers.forget()  # again and again: a thread that has looked before may still note what it has seen
            if not _is_called_by_us() or time.monotonic() > until:
                break
            time.sleep(0.001)
    except BaseException:
        native.left = None
        raise


def take_down() -> None:
    """Ray has marked this process as disconnected, and is about to take its native side down: do so where no thread can find it."""
    import ray

    worker = native.global_worker()
    core = vars(worker).get("core_worker")
    if core is not None and core is native.left and worker.mode == ray.SCRIPT_MODE:
        del worker.core_worker
        core.shutdown_driver()


def leave_as_client() -> None:
    """A Ray Client disconnects. Nothing of it is native: calls under way raise an error of their own."""
    if end_session is not None:
        end_session(True)


def watch() -> None:
    """Have no line of ours start a Ray. What has been replaced already stays."""
    import ray

    hook: Any = sys.modules.get("ray._private.auto_init_hook")
    original = getattr(hook, "auto_init_ray", None)
    if original is None or hasattr(original, "is_ours"):
        return

    def auto_init_ray() -> None:
        if (native.is_left(native.connected()) or not ray.is_initialized()) and _is_ours(sys._getframe(1)):
            raise native.gone()
        original()

    auto_init_ray.is_ours = True  # type: ignore[attr-defined] # a mark, see above
    hook.auto_init_ray = auto_init_ray


def _is_ours(frame: FrameType | None) -> bool:
    """Whether the nearest frame outside Ray is one of the package."""
    while frame is not None and frame.f_code.co_filename.startswith(_rays()):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(callers.FOLDER)


def _is_called_by_us() -> bool:
    """Whether another thread is in the middle of a call of ours to Ray."""
    me, rays = get_ident(), _rays()
    for thread, innermost in native.frames().items():
        frame: FrameType | None = innermost
        is_in_ray = innermost.f_code.co_filename.startswith(_HERE)
        while frame is not None and thread != me and not is_in_ray:
            before, frame = frame.f_code.co_filename, frame.f_back
            is_in_ray = before.startswith(rays) and frame is not None and _is_ours(frame)
        if is_in_ray and thread != me:
            return True
    return False


def _rays() -> str:
    return str(Path(sys.modules["ray"].__file__ or "").parent) + os.sep
