"""The way outside Ray by which the demo's two processes talk: two queues of opaque bytes, in a SQLite file or a Redis server.

What always holds: messages of a queue arrive once and in order; every wait has a timeout; a channel never looks into a message, and
knows nothing of Ray. Who made the channel destroys it; a Redis server forgets what a killed demo left after an hour.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from .failure import DemoError, UsageError

# The two queues.
PAYLOADS = "payloads"  # producer to consumer
ANSWERS = "answers"  # consumer to producer

_CONNECT_TIMEOUT_S = 5.0
_BUSY_TIMEOUT_S = 30.0
_REDIS_KEY_TTL_S = 3600


class Channel(Protocol):
    """Two queues of bytes between two processes."""

    kind: str
    address: str
    """What `open_channel` needs in another process to open the same channel. As secret as a password in it."""

    def put(self, queue: str, message: bytes) -> None:
        """Append a message to a queue."""

    def get(self, queue: str, timeout_s: float) -> bytes:
        """Take the oldest message off a queue, waiting for one.

        Raises:
            DemoError: none came in time, or the server failed.
        """

    def destroy(self) -> None:
        """Remove all that the channel keeps outside this process."""

    def close(self) -> None:
        """End this process's connection."""

    def __enter__(self) -> Channel: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Closing:
    """A channel is its own context manager, and closes at the end."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class SQLiteChannel(_Closing):
    """A table in a SQLite file, polled by the one who waits.

    Args:
        path: the file; made when it isn't there.
    """

    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        self._path = path
        self.address = f"sqlite:{path}"
        # Every statement is its own transaction.
        self._connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        # Nobody needs the demo's messages after a power cut.
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT, body BLOB)"
        )

    def put(self, queue: str, message: bytes) -> None:
        """Append a message to a queue."""
        self._connection.execute("INSERT INTO message (queue, body) VALUES (?, ?)", (queue, message))

    def get(self, queue: str, timeout_s: float) -> bytes:
        """Take the oldest message off a queue."""
        deadline = time.monotonic() + timeout_s
        pause_s = 0.001
        while True:
            row = self._connection.execute(
                "SELECT id, body FROM message WHERE queue = ? ORDER BY id LIMIT 1", (queue,)
            ).fetchone()
            # Of two readers the one that deletes the row has the message.
            if row and self._connection.execute("DELETE FROM message WHERE id = ?", row[:1]).rowcount == 1:
                return bytes(row[1])
            if time.monotonic() >= deadline:
                raise _silent(queue, timeout_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.02)

    def destroy(self) -> None:
        """Remove the file and what SQLite keeps beside it."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class RedisChannel(_Closing):
    """Two lists in a Redis server.

    Args:
        url: the server, as `redis://[[user]:password@]host[:port][/db]`, or `rediss://` or `unix://`.
        run: a name for this run's keys that no other run has.

    Raises:
        UsageError: the package `redis` isn't installed, the URL isn't one, or the server can't be reached.
    """

    kind = "redis"

    def __init__(self, url: str, run: str) -> None:
        try:
            import redis
        except ModuleNotFoundError:
            raise UsageError("the package `redis` isn't installed: pip install 'safe-refs[redis]'") from None
        self._failures = redis.RedisError
        self.address = f"{run} {url}"
        self._prefix = f"safe_refs-demo:{run}:"
        try:
            # Typed Any: redis-py's types can't tell its plain client from its async one.
            self._server: Any = redis.Redis.from_url(
                url, socket_connect_timeout=_CONNECT_TIMEOUT_S, socket_timeout=2 * _CONNECT_TIMEOUT_S
            )
            self._server.ping()
        except (redis.RedisError, OSError, ValueError) as error:
            raise UsageError(f"the Redis server can't be used: {error}") from None

    def put(self, queue: str, message: bytes) -> None:
        """Append a message to a queue."""
        key = self._prefix + queue
        with self._blaming_the_server():
            both = self._server.pipeline(transaction=True)
            both.rpush(key, message)
            both.expire(key, _REDIS_KEY_TTL_S)
            both.execute()

    def get(self, queue: str, timeout_s: float) -> bytes:
        """Take the oldest message off a queue."""
        deadline = time.monotonic() + timeout_s
        while True:
            # In whole seconds, which is all that a Redis before 6.0 takes, and below the socket's own timeout.
            with self._blaming_the_server():
                found = self._server.blpop([self._prefix + queue], timeout=1)
            if found is not None:
                return bytes(found[1])
            if time.monotonic() >= deadline:
                raise _silent(queue, timeout_s)

    def destroy(self) -> None:
        """Delete this run's keys, if the server still lives."""
        with suppress(self._failures):
            self._server.delete(self._prefix + PAYLOADS, self._prefix + ANSWERS)
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    @contextmanager
    def _blaming_the_server(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise DemoError(f"the Redis server failed: {error}") from error


def new_redis_channel(url: str) -> RedisChannel:
    """A channel of its own in a Redis server. Raises as `RedisChannel`."""
    return RedisChannel(url, uuid.uuid4().hex)


def open_channel(address: str) -> Channel:
    """Open, in another process, the channel that has this address."""
    if address.startswith("sqlite:"):
        return SQLiteChannel(Path(address.removeprefix("sqlite:")))
    run, _, url = address.partition(" ")
    return RedisChannel(url, run)


def _silent(queue: str, timeout_s: float) -> DemoError:
    return DemoError(f"nothing came through the channel's queue {queue!r} for {timeout_s:g} s")
