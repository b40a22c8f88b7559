"""A child that is forked from a process in the middle of its work: plain data works there, and what needs the registry is refused."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from typing import Any

import safe_refs

_CHILD_S = 30.0  # for all that it does; a paused parent doesn't keep it from that
_AT_ONCE_S = 5.0  # for each of its calls, on a busy machine
_PLAIN = {"plain": [1, 2]}


class WrongForkError(Exception):
    """A child got another answer than it is promised."""


class HungForkError(Exception):
    """A child, or one of its calls, did not end in time."""


def try_child(payload: bytes, ref: Any) -> None:
    """Fork a child that loads, releases and makes payloads, and ends.

    Args:
        payload: of a live lease, or one that has ended.
        ref: a reference of this process.

    Raises:
        WrongForkError: see there.
        HungForkError: see there.
    """
    calls: dict[str, Callable[[], Any]] = {
        "loads": lambda: safe_refs.loads(payload),
        "release": lambda: safe_refs.release(payload),
        "dumps": lambda: safe_refs.dumps(ref),
        "dumps without waiting": lambda: safe_refs.dumps(ref, wait=False),
        "plain data": lambda: safe_refs.loads(safe_refs.dumps(_PLAIN)),
    }
    promised: dict[str, Any] = {**dict.fromkeys(calls, "RegistryUnavailableError"), "plain data": _PLAIN}
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said: dict[str, tuple[Any, float]] = {}
        for name, call in calls.items():
            begun = time.monotonic()
            try:
                answer = call()
            except BaseException as error:
                answer = type(error).__name__
            said[name] = answer, time.monotonic() - begun
        os.write(writer, pickle.dumps(said))
        os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], _CHILD_S)[0]:
            raise HungForkError(f"a forked child did not end within {_CHILD_S:g} s")
        found = os.read(reader, 10_000)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not found:
        raise WrongForkError("a forked child crashed")
    for name, (answer, took_s) in pickle.loads(found).items():
        if answer != promised[name]:
            raise WrongForkError(f"{name} in a forked child: {answer!r}")
        if took_s > _AT_ONCE_S:
            raise HungForkError(f"{name} in a forked child took {took_s:.1f} s")
