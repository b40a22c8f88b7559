"""A small Ray for the demo alone: one node, on loopback, ended with all that it started however the demo ends.

What always holds: a Ray that already runs on the machine is neither used nor disturbed (the demo's keeps its files in a folder of its
own); nothing listens on the network, and nothing is reported home.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..errors import SafeRefsError
from .failure import DemoError, UsageError

LEAST_STORE_BYTES = 300_000_000
CPUS = 2

# Read by Ray's processes and by the demo's own; Ray reads them when it is imported.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    # With clusters off (Ray's default on macOS and Windows) every server binds to 127.0.0.1. Otherwise `ray.init` takes the
    # machine's own address even where it is told 127.0.0.1, and its servers listen on all interfaces (seen with Ray 2.60).
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a tip about GPUs that Ray up to 2.5x prints as a warning
}


class LocalRay(NamedTuple):
    """The running Ray.

    Attributes:
        address: where other processes connect to it.
        store_size_bytes: size of its object store.
        folder: a folder that goes when it ends.
    """

    address: str
    store_size_bytes: int
    folder: Path


def store_size(largest_bytes: int) -> int:
    """How large the object store must be for files of which the largest is so large, in bytes.

    Twice the largest: Ray frees what is released up to a second later, when the next one is already being put.

    Raises:
        UsageError: this machine hasn't the memory for it.
    """
    size = max(LEAST_STORE_BYTES, int(2.2 * largest_bytes))
    # The store, and a copy of the file in the process that reads it and in the one that checks it.
    needed, have = size + 2 * largest_bytes, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > have:
        raise UsageError(
            f"the largest file, {largest_bytes:,} bytes, is too large for this machine's memory: the demo would need "
            f"{needed:,} bytes of {have:,}"
        )
    return size


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put interruptions off until the end: a process that leaves `ray.init` halfway may crash when it exits."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where no signal arrives
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
    if arrived:
        raise KeyboardInterrupt


@contextmanager
def running(store_size_bytes: int) -> Iterator[LocalRay]:
    """Start a Ray and connect this process to it; at the end, stop it.

    Raises:
        DemoError: it didn't start, or failed while it was used, with Ray's reason.
    """
    os.environ.update(ENVIRONMENT)
    import ray

    # Ray's sockets lie in that folder, and the path of a socket must be short.
    short = None if len(tempfile.gettempdir()) <= 30 else "/tmp"  # noqa: S108 # mkdtemp makes a private folder in it
    folder = tempfile.mkdtemp(prefix="safe_refs-", dir=short)
    try:
        try:
            with _uninterrupted():
                ray.init(
                    address="local",
                    num_cpus=CPUS,
                    object_store_memory=store_size_bytes,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                )
        except Exception as error:
            raise DemoError(f"a local Ray could not be started: {error}") from error
        try:
            yield LocalRay(str(ray.get_runtime_context().gcs_address), store_size_bytes, Path(folder))
        except (ray.exceptions.RayError, SafeRefsError) as error:
            # The last line of an error that comes from another process says what it was.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DemoError(f"Ray failed: {lines[-1]}") from error
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
