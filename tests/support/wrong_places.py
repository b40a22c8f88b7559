"""Mistakes with where and when: before `ray.init`, after `ray.shutdown`, in a forked child, in a worker's setup hook.

Each place is a process of its own, which makes the mistakes with all calls that need the registry and prints what is wrong.
"""

from __future__ import annotations

import io
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

import safe_refs
from safe_refs import aio

from . import mistakes
from .mistakes import Given, Mistake

CALLS: dict[str, Callable[[Given], Any]] = {
    "loads": lambda given: safe_refs.loads(given.payload),
    "take": lambda given: safe_refs.loads(given.payload, take=True),
    "loads_many": lambda given: safe_refs.loads_many([given.payload]),
    "load": lambda given: safe_refs.load(io.BytesIO(given.payload)),
    "open_payload": lambda given: safe_refs.Unpickler(io.BytesIO(given.payload)).load(),
    "release": lambda given: safe_refs.release(given.payload),
    "release by id": lambda _: safe_refs.release("0" * 32),
    "renew": lambda given: safe_refs.renew(given.payload, 60),
    "expires_in_s": lambda given: safe_refs.expires_in_s(given.payload),
    "keepalive": lambda given: safe_refs.keepalive(given.payload, 60),
    "consume": lambda given: safe_refs.consume(given.payload),
    "consume a handle": lambda given: safe_refs.consume(given.handle),
    "resolve": lambda given: given.handle.resolve(),
    "get": lambda given: given.handle.get(),
    "make_durable": lambda given: given.handle.make_durable(),
    "with handle": lambda given: given.handle.__exit__(),
    "put": lambda _: safe_refs.put(1),
    "leases": lambda _: safe_refs.leases(),
    "stats": lambda _: safe_refs.stats(),
    "shutdown": lambda _: safe_refs.shutdown(),
    "init": lambda _: safe_refs.init(),
    "aio.loads": lambda given: aio.loads(given.payload),
    "aio.release": lambda given: aio.release(given.payload),
    "aio.put": lambda _: aio.put(1),
    "aio.init": lambda _: aio.init(),
    "aio.resolve": lambda given: aio.resolve(given.handle),
    "await handle": lambda given: aio.get(given.handle),
}
# With a reference, which a process may have that isn't connected (any more).
WITH_REFERENCE: dict[str, Callable[[Given], Any]] = {
    "dumps": lambda given: safe_refs.dumps([given.ref]),
    "dumps, not waiting": lambda given: safe_refs.dumps([given.ref], wait=False),
    "dumps_many": lambda given: safe_refs.dumps_many([given.ref]),
    "dump": lambda given: safe_refs.dump(given.ref, io.BytesIO()),
    "pin": lambda given: safe_refs.pin(given.ref),
    "Pickler": lambda given: safe_refs.Pickler(io.BytesIO()).dump(given.ref),
    "aio.dumps": lambda given: aio.dumps(given.ref),
    "aio.pin": lambda given: aio.pin(given.ref),
}
NOT_CONNECTED = r"Ray is not initialized in this process.*: call ray.init\(address=\.\.\.\)"
FORKED = (
    r"this process was forked from one that is connected to Ray.*: fork before ray.init\(\) and connect in the children"
)
IN_A_HOOK = r"in its setup hook.*: only safe_refs.init works there; move the rest into the task or actor"


def rows(says: str, calls: dict[str, Callable[[Given], Any]]) -> list[Mistake]:
    """A mistake for each call, all of one cause."""
    return [Mistake(name, call, safe_refs.RegistryUnavailableError, says) for name, call in calls.items()]


def report(found: list[str]) -> None:
    """Print what is wrong, for the test that started this process."""
    print(json.dumps(found))


def before_init(*, imported: bool) -> None:
    """Nobody has called `ray.init`; nor, perhaps, imported Ray."""
    if imported:
        import ray

        assert not ray.is_initialized()
    else:
        assert "ray" not in sys.modules
    report(mistakes.verdicts(rows(NOT_CONNECTED, CALLS), mistakes.without_ray()))


def after_shutdown() -> None:
    """A connected process has called `ray.shutdown`, and goes on with what it has."""
    import ray

    given = mistakes.given()
    mistakes.end(given)
    ray.shutdown()
    report(mistakes.verdicts(rows(NOT_CONNECTED, CALLS | WITH_REFERENCE), given))


def in_a_fork() -> None:
    """A connected process has forked, and the child goes on as if it were connected."""
    given = mistakes.given()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        found = mistakes.verdicts(rows(FORKED, CALLS | WITH_REFERENCE), given)
        os.write(writer, json.dumps(found).encode()[:4000])
        os._exit(0)
    os.close(writer)
    try:
        is_done = select.select([reader], [], [], 30)[0]
        said = os.read(reader, 4000) if is_done else b'["it hangs"]'
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    found = json.loads(said or b'["it crashed"]')
    report(found if mistakes.end(given) == 2 else [*found, "a lease was ended"])


in_hook: list[str] = ["the hook did not run"]


def hook() -> None:
    """A worker's setup hook, which does what only tasks can."""
    calls = {name: call for name, call in CALLS.items() if name not in ("init", "aio.init")}
    in_hook[:] = mistakes.verdicts(rows(IN_A_HOOK, calls), mistakes.without_ray())


def in_a_hook(address: str) -> None:
    """A job has such a hook."""
    import ray

    environment = {
        "worker_process_setup_hook": f"{__name__}.hook",
        "env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]},
    }
    ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
    report(ray.get(ray.remote(num_cpus=0)(_in_hook).remote(), timeout=60))


def _in_hook() -> list[str]:
    return in_hook
