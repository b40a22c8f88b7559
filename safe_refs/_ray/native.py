"""Two ways into Ray that the other files here share: this process's core worker, and Ray's control service.

It is a file of its own so that `actors`, `workers` and `counts` need not import one another for it.
"""

from __future__ import annotations

from typing import Any


def core_worker() -> Any:
    """The native side of this process, which counts its references.

    Private: `ray._private.worker.global_worker.core_worker`, seen since Ray 2.52. Ray sets it at run time only, so that Ray's types
    don't know it. A Ray Client has none.
    """
    import ray

    worker: Any = ray._private.worker.global_worker
    return worker.core_worker


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
