"""Jobs of one process that plays by itself, as the storm sees them: drivers that come and go, and Ray Clients.

What always holds: a process that has ended is followed by another one as soon as somebody asks for it, as with Ray's actors.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from queue import Empty, SimpleQueue
from typing import Any

from .cluster import ROOT, kill
from .ledger import Ledger
from .orders import Hello, Reply
from .soloist import from_line, to_line
from .troupe import ORDER_TIMEOUT_S, HungError, Seat, Surprise

_STARTS_S = 60.0
_GRACE_S = "2"  # how long the server of a client waits for it to come back when it is gone without a word
_COMES_BACK_S = 60.0


class _Line:
    """A soloist's process, and what was asked of it.

    Args:
        address: as for `Soloist`.
        kind: as for `Soloist`.
    """

    def __init__(self, address: str, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.soloist", address, kind],
            cwd=ROOT, env={**os.environ, "RAY_CLIENT_RECONNECT_GRACE_PERIOD": _GRACE_S},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._asked = 0
        self._lock = threading.Lock()  # of the two below, and of what is written
        self._waiting: dict[int, SimpleQueue[Any]] = {}
        self._has_ended = False
        threading.Thread(target=self._listen, name="soloist", daemon=True).start()

    def ask(self, method: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        """An answer; None if the process has ended.

        Raises:
            Empty: not in time.
        """
        answer: SimpleQueue[Any] = SimpleQueue()
        with self._lock:
            if self._has_ended:
                return None
            self._asked += 1
            number = self._asked
            self._waiting[number] = answer
            try:
                assert self.process.stdin is not None
                self.process.stdin.write(to_line((number, method, args)))
                self.process.stdin.flush()
            except OSError:
                return None
        try:
            return answer.get(timeout=timeout_s)
        finally:
            with self._lock:
                self._waiting.pop(number, None)

    def close(self) -> None:
        """Let the process end in order."""
        with self._lock, contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            number, reply = from_line(line)
            with self._lock:
                waiting = self._waiting.get(number)
            if waiting is not None:
                waiting.put(reply)
        with self._lock:
            self._has_ended = True
            for each in self._waiting.values():
                each.put(None)


class SoloSeat(Seat):
    """The player that such a job is.

    Args:
        name: its name.
        job: the job's name.
        kind: `driver` or `client`.
        address: where it connects.
        ledger: as for `Seat`.
        surprise: as for `Seat`.
    """

    def __init__(self, name: str, job: str, kind: str, address: str, ledger: Ledger, surprise: Surprise) -> None:
        super().__init__(name, job, ledger, surprise)
        self.kind = kind
        self._address = address
        self._changing = threading.Lock()
        self.line = _Line(address, kind)

    def arrive(self, timeout_s: float) -> bool:
        """As for `Seat`."""
        with self._changing:
            if (status := self.line.process.poll()) is not None:
                self.how_ended = f", exit status {status},"
                self.line = _Line(self._address, self.kind)
            line = self.line
        try:
            hello: Hello | None = line.ask("hello", (), timeout_s)
        except Empty:
            hello = None
        if hello is None:
            self.doing = "not answering"
            return False
        self.is_there(hello)
        return True

    def ask(self, method: str, *args: Any) -> Reply | None:
        """As for `Seat`."""
        self.doing = f"{method} of {time.monotonic():.1f} by {self.pid}"
        try:
            reply: Reply | None = self.line.ask(method, args, ORDER_TIMEOUT_S)
        except Empty:
            raise HungError(f"{self.kind} {self.name} did not answer within {ORDER_TIMEOUT_S:g} s") from None
        finally:
            self.doing = ""
        if reply is None:
            self.pid = 0
        return reply

    def kill_by_ray(self) -> None:
        """Ray offers no way."""
        kill(self.line.process.pid)

    def leave(self, moment_s: float) -> bool:
        """Have it leave the cluster in the middle of a call, so long after its beginning, and come back; False if it doesn't.

        Whoever wants that has told the ledger.
        """
        try:
            self.line.ask("leave", (moment_s,), _COMES_BACK_S)  # or somebody has killed it
        except Empty:
            return False
        return True


class Solo:
    """A job of one process.

    Args:
        name: of the job.
        kind: `driver` or `client`.
        address: where it connects.
        ledger: as for `Seat`.
        surprise: as for `Seat`.
    """

    def __init__(self, name: str, kind: str, address: str, ledger: Ledger, surprise: Surprise) -> None:
        self.name = name
        self._seat = SoloSeat(f"{name}.{kind}", name, kind, address, ledger, surprise)

    @property
    def seats(self) -> list[Seat]:
        """Its only one."""
        return [self._seat]

    def ready(self) -> bool:
        """Wait until it is there."""
        deadline = time.monotonic() + _STARTS_S
        while not self._seat.arrive(5.0):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def kill(self) -> None:
        """SIGKILL."""
        self._seat.line.process.kill()
        self._seat.line.process.wait()

    def end(self) -> None:
        """Let it end in order, or kill it."""
        self._seat.line.close()
        try:
            self._seat.line.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
