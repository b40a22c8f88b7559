"""The players of all jobs, as the storm sees them: where they are, whether they are free, and what they answer.

What always holds: one order at a time to each player; the ledger knows the process that an order goes to before it is given.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .cluster import ROOT
from .ledger import NEVER, Ledger, Process
from .orders import NAMESPACE, Hello, Reply

ORDER_TIMEOUT_S = 200.0  # longer than all that an order may wait for, one after the other
_STARTS_S = 60.0

Surprise = Callable[[str, int], None]  # who died without being killed, and the pid


class HungError(Exception):
    """A player has not answered at all."""


class Seat:
    """A player by name. The process behind it changes when it is killed.

    Args:
        name: its name.
        job: the job's name.
        ledger: to tell who is there.
        surprise: hears of a process that died without being killed: which, and its pid.
    """

    def __init__(self, name: str, job: str, ledger: Ledger, surprise: Surprise) -> None:
        self.name = name
        self.job = job
        self.busy = threading.Lock()
        self.process: Process | None = None
        self.pid = 0
        self.doing = ""
        self.kind = ""  # of the process that was last there
        self.how_ended = ""  # as far as it is known
        self._last_pid = 0  # its, also when it has gone
        self._ledger = ledger
        self._surprise = surprise
        self._handle: Any = None

    def arrive(self, timeout_s: float) -> bool:
        """Learn which process is there; False if none answers in time."""
        import ray

        try:
            if self._handle is None:
                self._handle = ray.get_actor(self.name, namespace=NAMESPACE)
            hello: Hello = ray.get(self._handle.hello.remote(), timeout=timeout_s)
        except (ValueError, ray.exceptions.RayError) as error:
            self.doing = f"not answering: {type(error).__name__}"
            return False
        self.is_there(hello)
        return True

    def is_there(self, hello: Hello) -> None:
        """A process has said hello."""
        self.doing = ""
        before, last_pid = self.process, self._last_pid
        self.pid, self.kind = hello.pid, hello.kind
        self._last_pid = hello.pid
        self.process = self._ledger.born(hello.token, self.name, self.job, hello.node, hello.kind)
        if before and before.token != hello.token and before.dying_at == NEVER and not before.doomed:
            self._surprise(f"player {self.name}{self.how_ended}", last_pid)

    def ask(self, method: str, *args: Any) -> Reply | None:
        """Give an order and wait for the answer; None if the player died meanwhile.

        Raises:
            HungError: no answer, although the process lives.
        """
        import ray

        self.doing = f"{method} of {time.monotonic():.1f} by {self.pid}"
        try:
            reply: Reply = ray.get(getattr(self._handle, method).remote(*args), timeout=ORDER_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            raise HungError(f"player {self.name} did not answer within {ORDER_TIMEOUT_S:g} s") from None
        except ray.exceptions.RayActorError:
            self.pid = 0  # whoever sits down here next says hello first
            return None
        finally:
            self.doing = ""
        return reply

    def kill_by_ray(self) -> None:
        """The way that Ray offers: `ray.kill`. It comes back as another process."""
        import ray

        ray.kill(self._handle, no_restart=False)


class Job:
    """A driver process with its players.

    Args:
        name: of the job.
        address: of the cluster.
        players: how many.
        ledger: as for `Seat`.
        surprise: as for `Seat`.
        resource: that the players' node has; empty if they may be anywhere.
    """

    def __init__(
        self, name: str, address: str, players: int, ledger: Ledger, surprise: Surprise, resource: str = ""
    ) -> None:
        self.name = name
        self.seats = [Seat(f"{name}.{number}", name, ledger, surprise) for number in range(players)]
        self._driver = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.job"],
            cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._driver.stdin is not None
        orders = {"address": address, "players": [seat.name for seat in self.seats], "resource": resource}
        self._driver.stdin.write(json.dumps(orders) + "\n")
        self._driver.stdin.flush()

    def ready(self) -> bool:
        """Wait until all players are there."""
        deadline = time.monotonic() + _STARTS_S
        for seat in self.seats:
            while not seat.arrive(5.0):
                if time.monotonic() > deadline or self._driver.poll() is not None:
                    return False
                time.sleep(0.2)
        return True

    def kill(self) -> None:
        """SIGKILL to the driver."""
        self._driver.kill()
        self._driver.communicate()

    def end(self) -> None:
        """Let the driver end in order, or kill it."""
        try:
            self._driver.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()


class Company(Protocol):
    """A job, of several players or of one that plays by itself."""

    name: str

    @property
    def seats(self) -> Sequence[Seat]: ...

    def ready(self) -> bool: ...
    def kill(self) -> None: ...
    def end(self) -> None: ...


Begin = Callable[[str], Company]  # a job of this name


class Troupe:
    """All jobs and players.

    Args:
        begin: for each job, what begins it, or another one in its place.
        ledger: to tell who dies.
    """

    def __init__(self, begin: Sequence[Begin], ledger: Ledger) -> None:
        self._ledger = ledger
        self._started = 0
        self._lock = threading.Lock()
        self._begin = list(begin)
        self.jobs = [self._another(number) for number in range(len(begin))]
        for job in self.jobs:
            if not job.ready():
                raise RuntimeError(f"job {job.name} did not start")

    def seats(self) -> list[Seat]:
        """All of them, now."""
        with self._lock:
            return [seat for job in self.jobs for seat in job.seats]

    def take_seat(self, source: random.Random, wanted: Callable[[Seat], bool] = lambda _: True) -> Seat | None:
        """A player that is free, lives, and is wanted, to be freed with `seat.busy.release()`; None if there is none now."""
        seats = [seat for seat in self.seats() if wanted(seat)]
        source.shuffle(seats)
        for seat in seats:
            if seat.busy.acquire(blocking=False):
                alive = seat.process is not None and seat.process.dying_at == NEVER and seat.pid
                if alive or seat.arrive(1.0):
                    return seat
                seat.busy.release()
        return None

    def kill_job(self, job: Company) -> None:
        """Kill a job's driver; another job comes in its place."""
        self._ledger.dying(time.monotonic(), job=job.name)
        job.kill()
        # A process that had not yet said hello dies with the others.
        number = self.jobs.index(job)
        new = self._another(number)
        with self._lock:
            self.jobs[number] = new
        new.ready()

    def visit(self, begin: Begin) -> Company:
        """One job more, for a while; not there yet if it takes long."""
        self._started += 1
        job = begin(f"job{self._started}")
        job.ready()
        with self._lock:
            self.jobs.append(job)
        return job

    def depart(self, job: Company) -> None:
        """Kill a job's driver; nobody comes in its place."""
        self._ledger.dying(time.monotonic(), job=job.name)
        with self._lock:
            self.jobs.remove(job)
        job.kill()

    def end(self, kind: str = "") -> None:
        """End all jobs in order, or those of which the only player is of a kind."""
        at = time.monotonic()
        ends = [job for job in self.jobs if not kind or {seat.kind for seat in job.seats} == {kind}]
        with self._lock:
            self.jobs = [job for job in self.jobs if job not in ends]
        for job in ends:
            self._ledger.dying(at, job=job.name)
        for job in ends:
            job.end()

    def _another(self, number: int) -> Company:
        self._started += 1
        return self._begin[number](f"job{self._started}")
