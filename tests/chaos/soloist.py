"""A driver, or a Ray Client, that plays by itself: a process of its own, which takes orders on its standard input.

A line is an order or an answer: a pickle in base64. Orders are carried out by a thread of its own, one at a time; so that this thread
can call `ray.shutdown()` in the middle of one, and `ray.init()` again. It ends when its standard input is closed.
"""

from __future__ import annotations

import base64
import faulthandler
import logging
import os
import pickle
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray

from .orders import NAMESPACE
from .player import Player

_CALL_COMES_S = 5.0  # how long to wait for a call, to leave in its middle
_CONNECTS = 5  # times; now and then Ray's server for a client fails to start


def to_line(value: Any) -> bytes:
    """A value as a line."""
    return base64.b64encode(pickle.dumps(value)) + b"\n"


def from_line(line: bytes) -> Any:
    """The value of a line."""
    return pickle.loads(base64.b64decode(line))


class Soloist:
    """The process.

    Args:
        address: of the cluster; `ray://…` for a client.
        kind: `driver` or `client`.
    """

    def __init__(self, address: str, kind: str) -> None:
        self._address = address
        self._kind = kind
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # others print, too
        self._answering = threading.Lock()
        self._orders: SimpleQueue[tuple[int, str, tuple[Any, ...]]] = SimpleQueue()
        self._between = threading.Lock()  # held while an order is carried out
        self._player = self._connected()
        threading.Thread(target=self._work, daemon=True).start()

    def serve(self) -> None:
        """Take orders until there are no more."""
        for line in sys.stdin.buffer:
            number, method, args = from_line(line)
            if method == "leave":
                self._leave(*args)
                self._answer(number, self._player.hello())
            else:
                self._orders.put((number, method, args))
        ray.shutdown()

    def _work(self) -> None:
        while True:
            number, method, args = self._orders.get()
            with self._between:
                self._answer(number, getattr(self._player, method)(*args))

    def _answer(self, number: int, reply: Any) -> None:
        with self._answering:
            self._out.write(to_line((number, reply)))
            self._out.flush()

    def _leave(self, moment_s: float) -> None:
        """Leave the cluster, in the middle of a call if one comes; and come back, as somebody else."""
        role = self._player.role
        role.calling.wait(_CALL_COMES_S)
        time.sleep(moment_s)
        with role.plain:  # Ray's own calls are none of ours
            ray.shutdown()
        with self._between:
            self._player = self._connected()

    def _connected(self) -> Player:
        for left in reversed(range(_CONNECTS)):
            try:
                ray.init(self._address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
                break
            except ConnectionError:
                if not left:
                    raise
                time.sleep(1)
        return Player(self._kind)


def _keep_last_words() -> None:
    """What is said on standard error goes where `Cluster.last_words` looks, also when the process is ended by a fault."""
    folder = Path(os.environ["RAY_TMPDIR"]) / "logs"
    folder.mkdir(exist_ok=True)
    os.dup2(os.open(folder / f"soloist_{os.getpid()}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    faulthandler.enable()


if __name__ == "__main__":
    _keep_last_words()
    Soloist(*sys.argv[1:]).serve()
    print("has ended in order", file=sys.stderr)
