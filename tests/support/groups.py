"""A group whose calls a test lets through one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from safe_refs import assembly
from safe_refs.batching.groups import Batched, Group
from safe_refs.config import Deadline
from safe_refs.errors import RegistryUnavailableError
from safe_refs.threads import Background

from .waiting import wait_until

Answer = tuple[str, int]


def within(seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds, seconds)


def late(deadline: Deadline) -> Exception:
    return RegistryUnavailableError(f"no answer within {deadline.timeout_s:g} s")


def gone() -> Exception:
    return RegistryUnavailableError("the connection has ended")


class Echo:
    """A registry: answers each request with what was asked, and keeps what went out together.

    Attributes:
        batches: the calls, by what was asked.
        deadlines: theirs.
        gate: a call waits for it, unless the echo is `open`.
        fail: what the next call raises.
        undecided: what has to be asked again, by itself, if it was asked with others.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.deadlines: list[Deadline] = []
        self.gate = threading.Semaphore(0)
        self.open = is_open
        self.fail: BaseException | None = None
        self.undecided: set[int] = set()
        self.group: Group[int, Answer] = Group(self.alone, self.together, late, Background())

    def alone(self, number: int, deadline: Deadline) -> Answer:
        self._call([number], deadline)
        return ("echo", number)

    def together(self, numbers: Sequence[int], deadline: Deadline) -> Sequence[Answer | Exception | None]:
        self._call([*numbers], deadline)
        return [None if number in self.undecided else ("echo", number) for number in numbers]

    def _call(self, numbers: list[int], deadline: Deadline) -> None:
        self.batches.append(numbers)
        self.deadlines.append(deadline)
        if not self.open and not self.gate.acquire(timeout=min(20, deadline.left_s())):
            raise late(deadline)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error

    def first(self, pool: ThreadPoolExecutor, seconds: float = 20) -> Future[Answer]:
        """A request that goes by itself, and whose call is under way until the gate opens."""
        first = pool.submit(self.group.ask, 0, within(seconds))
        wait_until(lambda: bool(self.batches))
        return first

    def busy(self, pool: ThreadPoolExecutor) -> list[Future[Answer]]:
        """The same, and the group's thread has a call under way, too: from now on all others queue."""
        first = self.first(pool)
        second = pool.submit(self.group.ask, 100, within(20))
        wait_until(lambda: self.batches == [[0], [100]] and self.group._sending.thread is not None)
        return [first, second]

    def let_go(self, *others: Future[Answer]) -> list[Answer]:
        """Open the gate; the answers."""
        self.open = True
        self.gate.release(2)
        return [each.result(10) for each in others]

    def queued(self, count: int) -> None:
        """Wait until so many requests queue."""
        wait_until(lambda: self.group._sending.items.qsize() >= count)

    def is_at_rest(self) -> bool:
        return self.group.is_idle


class Outcomes:
    """The callback of posted requests."""

    def __init__(self) -> None:
        self.answers: list[Answer | None] = []
        self.errors: list[Exception] = []

    def __call__(self, answer: Answer | None, error: Exception | None) -> None:
        if error is None:
            self.answers.append(answer)
        else:
            self.errors.append(error)


def sender() -> Batched:
    """How the requests of this process go to registries."""
    found = assembly.client().sender
    assert isinstance(found, Batched)
    return found
