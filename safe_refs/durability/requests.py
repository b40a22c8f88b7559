"""The copy requests of one shard: for which leases its copy owner makes copies, and for whom. Pure.

A lease becomes durable when its copy owner has given the shard copies of all that it holds. Until then it holds the originals. There
are two kinds of requests:

- A process that wants a durable lease repeats its copy request until the lease is durable. So a request that nobody repeats any more
  is given up: its process has died.
- A record that came from another shard holds copies that the other shard's copy owner owns. For that lease, the shard's own copy
  owner makes copies in the background, until it has made them or the lease ends.

    new ──── ask, due ─────> sent ──── done ────> (the lease is durable)
     ^                       │  │
     └──── unsent, silence ──┘  └───── fail ────> failed: the next `ask` gets the reason; in the background: new again, after a pause

What always holds: used under the shard's lock only. If copies arrive for a request that was given up or has failed, the shard does
not take them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .wire import NotCopyable

_PATIENCE_S = 15.0  # a process that doesn't repeat its request for so long has died
_SILENCE_S = 10.0  # a copy owner that doesn't ask what is still wanted for so long has died
_PAUSE_S = 10.0  # before a job in the background that failed is begun again


class _Request:
    """A lease that is to become durable.

    Attributes:
        env: what the tasks need that copy its objects; see `environments.surroundings`.
        ttl: seconds that it is to live from when it is durable; None for the ttl that it has.
        asked_at: when a process last asked for it; None in the background.
        not_before: when it may be sent at the earliest, if it isn't sent.
        sent_at: when the copy owner got it, or last said that it is at it; None if it isn't sent.
        completion: becomes ready when the copy owner is done with it; None if there is none yet, or the maker has it.
        problem: why it could not be done, until somebody asks.
    """

    __slots__ = ("asked_at", "completion", "env", "not_before", "problem", "sent_at", "ttl")

    def __init__(self, env: str, ttl: float | None, asked_at: float | None, not_before: float) -> None:
        self.env = env
        self.ttl = ttl
        self.asked_at = asked_at
        self.not_before = not_before
        self.sent_at: float | None = None
        self.completion: Any = None
        self.problem: NotCopyable | None = None


class CopyRequests:
    """The leases of one shard that are to become durable.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # By lease. Only live leases of the shard: the request goes when the lease ends.
        self._requests: dict[bytes, _Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def ask(self, lease: bytes, env: str, ttl: float | None = None) -> NotCopyable | bool:
        """A process asks for a durable lease.

        Returns:
            Whether the caller has to send the request to the copy owner now; or why the lease can't become durable, which ends the
            request.
        """
        request = self._noted(lease, env, ttl)
        if request.problem is not None:
            del self._requests[lease]
            return request.problem
        return self._take(request)

    def note(self, lease: bytes, env: str, ttl: float | None, *, is_sent: bool) -> None:
        """A lease has begun that is to become durable. `is_sent`: its maker has sent the request to the copy owner itself."""
        request = self._noted(lease, env, ttl)
        if is_sent and request.sent_at is None:
            request.sent_at = self._clock()

    def want(self, lease: bytes, env: str) -> None:
        """A durable lease holds copies of another shard's copy owner: copy them in the background.

        If a process has asked for copies here, it learns that the lease is durable, and asks no more. Then this is what remains.
        """
        request = self._requests.get(lease)
        if request is None or request.asked_at is not None:
            wanted = self._requests[lease] = _Request(env, None, None, self._clock())
            if request is not None and request.problem is None:
                wanted.sent_at, wanted.completion = request.sent_at, request.completion

    def due(self) -> list[tuple[bytes, str]]:
        """The leases whose requests the caller has to send to the copy owner now, each with its environment."""
        self._give_up()
        return [(lease, request.env) for lease, request in self._requests.items() if self._take(request)]

    def sent(self, lease: bytes, completion: Any) -> None:
        """The copy owner has got a request, and gave this completion."""
        if lease in self._requests:
            self._requests[lease].completion = completion

    def unsent(self, lease: bytes) -> None:
        """The copy owner has not got a request, or did not deliver: send it again when somebody asks, or when it is due."""
        request = self._requests.get(lease)
        if request is not None:
            request.sent_at = request.completion = None

    def completion(self, lease: bytes) -> Any:
        """What becomes ready when the copy owner is done with a lease; None if there is nothing yet."""
        request = self._requests.get(lease)
        return None if request is None else request.completion

    def still(self, leases: Iterable[bytes]) -> list[bytes]:
        """The copy owner is at these: which of them are still wanted."""
        self._give_up()
        now = self._clock()
        wanted = []
        for lease in leases:
            request = self._requests.get(lease)
            if request is not None and request.problem is None:
                if request.sent_at is not None:  # else send it nevertheless: whoever asks needs a completion
                    request.sent_at = now
                wanted.append(lease)
        return wanted

    def done(self, lease: bytes) -> tuple[str, float | None] | None:
        """The copy owner brings the copies: the environment and the lease's new ttl; None if nobody wants the copies any more."""
        if not self.still([lease]):
            return None
        request = self._requests.pop(lease)
        return request.env, request.ttl

    def fail(self, lease: bytes, problem: NotCopyable) -> None:
        """The copy owner can't make the copies."""
        request = self._requests.get(lease)
        if request is None:
            return
        request.completion = None
        if request.asked_at is None:
            request.sent_at, request.not_before = None, self._clock() + _PAUSE_S
        else:
            request.problem = problem

    def forget(self, lease: bytes) -> None:
        """The lease has ended."""
        self._requests.pop(lease, None)

    def _noted(self, lease: bytes, env: str, ttl: float | None) -> _Request:
        now = self._clock()
        request = self._requests.get(lease)
        if request is None:
            request = self._requests[lease] = _Request(env, ttl, now, now)
        request.asked_at = now
        return request

    def _take(self, request: _Request) -> bool:
        """Whether a request has to be sent now. If so it counts as sent: whoever asked sends it."""
        now = self._clock()
        if request.problem is not None or (request.sent_at is None and now < request.not_before):
            return False
        if request.sent_at is not None and now - request.sent_at <= _SILENCE_S:
            return False
        request.sent_at = now
        return True

    def _give_up(self) -> None:
        """Forget requests of processes that don't ask any more."""
        longest = self._clock() - _PATIENCE_S
        given_up = [
            lease
            for lease, request in self._requests.items()
            if request.asked_at is not None and request.asked_at < longest
        ]
        for lease in given_up:
            del self._requests[lease]
