"""A job that sends garbage to the registry's actors all the time: calls that are right in most of their parts.

It is a driver of its own, `python -m tests.chaos.vandal ADDRESS SEED`, which goes on until its standard input is closed. Then it
says what came of its calls, as a line of JSON, and what of that was neither an answer nor a refusal by name.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from typing import Any

import ray

import safe_refs
from safe_refs._ray.cluster import NAMESPACE
from safe_refs.anchoring.relays import FOR_CLIENTS
from safe_refs.assembly import SafeRefsRegistry
from tests.support import garbage

from .cluster import ROOT

_PAUSE_S = 0.03  # between two calls: it is to be a nuisance to the rules, not to the machine
_IN_FLIGHT = 20
_LOOKS_S = 2.0  # how often it looks which actors there are
_MOST_ODD = 10
_ANSWER_S = 60.0


class Vandal:
    """The process.

    Args:
        seed: for its calls.
    """

    def __init__(self, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self.odd: list[str] = []
        self._calls = garbage.Calls(seed, [ray.put("of garbage"), ray.put(b"x" * 200_000)])
        self._classes = garbage.classes()
        self._waiting: deque[tuple[str, Any]] = deque()

    def work(self, is_over: threading.Event) -> None:
        """Send until it is over."""
        while not is_over.is_set():
            targets = self._targets()
            until = time.monotonic() + _LOOKS_S
            while time.monotonic() < until and not is_over.wait(_PAUSE_S):
                if targets:
                    self._send(*self._calls.rng.choice(targets))
        while self._waiting:
            self._take()

    def _targets(self) -> list[tuple[str, type, Any]]:
        """All actors of ours, but for the relays that hold references just now: a garbage loan would take their place."""
        found = []
        for each in ray.util.list_named_actors(all_namespaces=True):
            name = each["name"]
            if each["namespace"] == NAMESPACE and (class_ := self._class(name)) is not None:
                try:
                    found.append((name, class_, ray.get_actor(name, namespace=NAMESPACE)))
                except ValueError:
                    continue  # it has just ended
        return found

    def _class(self, name: str) -> type | None:
        if name.startswith("registry:"):
            return self._classes["SafeRefsCopyOwner"] if name.endswith(":copies") else SafeRefsRegistry
        if name == "exit_delay":
            return self._classes["SafeRefsExitDelay"]
        return self._classes["SafeRefsRelay"] if name == f"relay:{FOR_CLIENTS[1]}" else None

    def _send(self, name: str, class_: type, handle: Any) -> None:
        method, args = next(self._calls.of(class_))
        try:
            self._waiting.append((f"{name}.{method}", getattr(handle, method).remote(*args)))
        except Exception:
            self.seen["refused by Ray"] += 1
        if len(self._waiting) > _IN_FLIGHT:
            self._take()

    def _take(self) -> None:
        name, reply = self._waiting.popleft()
        try:
            ray.get(reply, timeout=_ANSWER_S)
            self.seen["answered"] += 1
        except (ray.exceptions.RayActorError, ray.exceptions.OwnerDiedError, ray.exceptions.ObjectLostError):
            self.seen["had died"] += 1  # somebody has killed it
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (TypeError, ValueError, safe_refs.SafeRefsError)):
                self.seen["refused"] += 1
            else:
                self._note(f"{name}: {error!r}")
        except (TypeError, ValueError):
            self.seen["refused by Ray"] += 1
        except Exception as error:
            self._note(f"{name}: {error!r}")

    def _note(self, what: str) -> None:
        self.seen["something else"] += 1
        if len(self.odd) < _MOST_ODD:
            self.odd.append(what[-600:])


class Job:
    """The job, as the storm sees it.

    Args:
        address: of the cluster.
        seed: as for `Vandal`.
    """

    def __init__(self, address: str, seed: int) -> None:
        self._driver = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.vandal", address, str(seed)],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def end(self) -> tuple[Counter[str], list[str]]:
        """Let it end; what it has seen, and what of that was no refusal by name.

        Raises:
            RuntimeError: it has failed.
        """
        said, _ = self._driver.communicate("", timeout=3 * _ANSWER_S)
        if self._driver.returncode:
            raise RuntimeError("the job that sends garbage has failed")
        found = json.loads(said)
        return Counter(found["seen"]), list(found["odd"])


def _main(address: str, seed: int) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Ray prints, too
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    vandal, is_over = Vandal(seed), threading.Event()
    work = threading.Thread(target=vandal.work, args=(is_over,))
    work.start()
    sys.stdin.read()
    is_over.set()
    work.join()
    print(json.dumps({"seen": vandal.seen, "odd": vandal.odd}), file=out, flush=True)
    ray.shutdown()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
