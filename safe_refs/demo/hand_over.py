"""Part 2: files go from one Ray job to another, through a channel outside Ray, and nothing stays behind.

Starts the producer and the consumer, listens to both, and samples the object store meanwhile. What always holds: both processes have
ended when `run` returns or raises; a silence of both of more than two minutes is a failure.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .. import admin
from .._ray import store
from . import child
from .channel import ANSWERS, Channel
from .failure import DemoError
from .figures import HandOver
from .files import File
from .local_ray import LocalRay
from .producer import LEAVE

IN_FLIGHT_BYTES = 32_000_000
_SAMPLE_EVERY_S = 0.05
_EMPTY_TIMEOUT_S = 5.0
_END_TIMEOUT_S = 30.0
# A little more than the children themselves wait, so that the one that gives up says why.
_SILENCE_TIMEOUT_S = child.STALL_TIMEOUT_S + 30.0
_HUNG_UP = ""  # in the place of a report: this child has closed its output

Progress = Callable[[str, int], None]
"""Told `sent` or `checked`, and how many bytes, after each file."""


@dataclass(frozen=True)
class _Child:
    """One child process, and where what it writes goes."""

    name: str
    process: subprocess.Popen[str]
    errors: Path

    def check(self) -> None:
        """See that it runs, or has ended well.

        Raises:
            DemoError: it has ended badly.
        """
        status = self.process.poll()
        if status:
            lines = self.errors.read_text(errors="replace").strip().splitlines()
            raise DemoError(f"the {self.name} failed: {lines[-1] if lines else f'exit status {status}'}")


class _Watch:
    """Listens to the children and samples the store, and keeps what it heard and saw."""

    def __init__(self, children: Sequence[_Child], lines: queue.Queue[tuple[str, str]], progress: Progress) -> None:
        self._children = children
        self._lines = lines
        self._progress = progress
        self._next_sample = 0.0
        self._hung_up: set[str] = set()
        self.jobs: dict[str, str] = {}
        self.sent_bytes = 0
        self.checked_files = 0
        self.mismatched: list[str] = []
        self.peak_bytes = 0

    def until_ended(self, name: str) -> None:
        """Listen until one child has ended.

        Raises:
            DemoError: one ended badly, or none was heard of for too long.
        """
        deadline = time.monotonic() + _SILENCE_TIMEOUT_S
        while name not in self._hung_up:
            for each in self._children:
                each.check()
            try:
                self._take(*self._lines.get(timeout=_SAMPLE_EVERY_S))
                deadline = time.monotonic() + _SILENCE_TIMEOUT_S
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise DemoError(f"neither process was heard of for {_SILENCE_TIMEOUT_S:g} s") from None
            if time.monotonic() >= self._next_sample:
                self.peak_bytes = max(self.peak_bytes, store.store_usage().used_bytes)
                self._next_sample = time.monotonic() + _SAMPLE_EVERY_S
        for each in self._children:
            if each.name == name:
                try:
                    each.process.wait(timeout=_END_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    raise DemoError(f"the {name} did not end within {_END_TIMEOUT_S:g} s") from None
                each.check()

    def _take(self, who: str, line: str) -> None:
        if line == _HUNG_UP:
            self._hung_up.add(who)
            return
        event = json.loads(line)
        if event["event"] == "job":
            self.jobs[who] = event["job"]
        elif event["event"] == "sent":
            self.sent_bytes += event["bytes"]
            self._progress("sent", event["bytes"])
        elif event["event"] == "checked":
            self.checked_files += 1
            if not event["intact"]:
                self.mismatched.append(event["name"])
            self._progress("checked", event["bytes"])


def run(local: LocalRay, files: Sequence[File], channel: Channel, progress: Progress) -> HandOver:
    """Hand `files` over through `channel`.

    Raises:
        DemoError: a child process failed, or neither was heard of for too long.
    """
    before = store.store_usage().used_bytes
    begun = time.monotonic()
    lines: queue.Queue[tuple[str, str]] = queue.Queue()
    common = {"ray": local.address, "channel": channel.address}
    named = [(file.name, file.path) for file in files]
    orders = {"producer": {**common, "files": named, "in_flight_bytes": IN_FLIGHT_BYTES}, "consumer": common}
    with _children(orders, local.folder, lines) as children:
        watch = _Watch(children, lines, progress)
        watch.until_ended("consumer")
        # While the producer lives: what it put would go with it, whether anybody released it or not.
        after = store.wait_for_store(before, _EMPTY_TIMEOUT_S).used_bytes
        figures = admin.stats()
        channel.put(ANSWERS, LEAVE)
        watch.until_ended("producer")
    return HandOver(
        channel=channel.kind,
        producer_job=watch.jobs["producer"],
        consumer_job=watch.jobs["consumer"],
        files=len(files),
        bytes=watch.sent_bytes,
        checked_files=watch.checked_files,
        mismatches=len(watch.mismatched),
        mismatched_files=tuple(watch.mismatched),
        store_before_bytes=before,
        store_peak_bytes=max(watch.peak_bytes, after),
        store_after_bytes=after,
        live_leases=figures.live_leases if figures else 0,
        duration_s=round(time.monotonic() - begun, 3),
    )


@contextmanager
def _children(orders: dict[str, Any], folder: Path, lines: queue.Queue[tuple[str, str]]) -> Iterator[list[_Child]]:
    """Start the child processes, and end those that still run at the end. What they report goes into `lines`."""
    children: list[_Child] = []
    readers: list[threading.Thread] = []
    try:
        for name, order in orders.items():
            started = _start(name, order, folder)
            children.append(started)
            reader = threading.Thread(target=_read, args=(name, started.process.stdout, lines), daemon=True)
            reader.start()
            readers.append(reader)
        yield children
    finally:
        for each in children:
            if each.process.poll() is None:
                each.process.kill()
            each.process.wait(timeout=_END_TIMEOUT_S)
        for reader in readers:
            reader.join(timeout=_END_TIMEOUT_S)
        for each in children:
            if each.process.stdout is not None:
                each.process.stdout.close()


def _start(name: str, order: dict[str, Any], folder: Path) -> _Child:
    root = Path(__file__).parents[2]
    errors = folder / f"{name}.stderr"
    with errors.open("w") as sink:
        process = subprocess.Popen(  # noqa: S603 # fixed arguments
            [sys.executable, "-c", child.START, str(root), f"{__package__}.{name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            encoding="utf-8",
        )
    started = _Child(name, process, errors)
    try:
        with process.stdin as orders:  # type: ignore[union-attr] # it is a pipe
            json.dump(order, orders)
    except BrokenPipeError:
        process.wait(timeout=_END_TIMEOUT_S)
        started.check()
        raise DemoError(f"the {name} did not take its orders") from None
    except BaseException:
        process.kill()
        process.wait(timeout=_END_TIMEOUT_S)
        raise
    return started


def _read(name: str, stream: IO[str], lines: queue.Queue[tuple[str, str]]) -> None:
    for line in stream:
        # Whatever else gets printed in that process (by Ray, say) is no report.
        if line.startswith('{"event"'):
            lines.put((name, line))
    lines.put((name, _HUNG_UP))
