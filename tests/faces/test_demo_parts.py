"""The demo's parts: its channels, its verdict on figures, and the files that it takes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers import redis_server
from safe_refs.demo.channel import ANSWERS, PAYLOADS, Channel, SQLiteChannel, new_redis_channel, open_channel
from safe_refs.demo.failure import DemoError, UsageError
from safe_refs.demo.figures import HandOver, Way, problems
from safe_refs.demo.files import File, given, of_this_python, some
from safe_refs.demo.local_ray import LEAST_STORE_BYTES, store_size

GOOD_WAY = Way(
    way="safe_refs",
    refused=False,
    objects=3,
    came_back=3,
    before_bytes=0,
    pickled_bytes=9,
    maker_dropped_bytes=9,
    all_dropped_bytes=9,
    released_bytes=0,
    maker_ended_bytes=0,
    leftover_bytes=0,
)
GOOD_HAND_OVER = HandOver(
    channel="sqlite",
    producer_job="02000000",
    consumer_job="03000000",
    files=3,
    bytes=9,
    checked_files=3,
    mismatches=0,
    mismatched_files=(),
    store_before_bytes=5,
    store_peak_bytes=9,
    store_after_bytes=5,
    live_leases=0,
    duration_s=1.0,
)


@pytest.fixture(params=["sqlite", "redis"])
def channel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Channel]:
    """A channel of each kind."""
    made: Channel
    if request.param == "sqlite":
        made = SQLiteChannel(tmp_path / "channel.sqlite")
    else:
        made = new_redis_channel(request.getfixturevalue("redis_url"))
    yield made
    made.destroy()


def test_messages_arrive_once_and_in_order(channel: Channel) -> None:
    """Another process's end of a channel gets what was put, whatever the bytes, in order, each queue for itself."""
    messages = [b"one", b"", bytes(range(256)), b"x" * 100_000]
    with open_channel(channel.address) as other:
        for message in messages:
            channel.put(PAYLOADS, message)
        other.put(ANSWERS, b"yes")
        assert [other.get(PAYLOADS, 5) for _ in messages] == messages
        assert channel.get(ANSWERS, 5) == b"yes"
        with pytest.raises(DemoError, match="nothing came"):
            other.get(PAYLOADS, 0.05)


def test_a_channel_leaves_nothing(channel: Channel, tmp_path: Path) -> None:
    """Once destroyed, a channel has left neither file nor message; destroying it again does nothing."""
    channel.put(PAYLOADS, b"forgotten")
    channel.destroy()
    channel.destroy()
    assert list(tmp_path.iterdir()) == []
    with open_channel(channel.address) as again, pytest.raises(DemoError):
        again.get(PAYLOADS, 0.05)


def test_two_runs_share_a_redis_server(redis_url: str) -> None:
    """Two demos on one Redis server don't see each other's messages."""
    mine, theirs = new_redis_channel(redis_url), new_redis_channel(redis_url)
    mine.put(PAYLOADS, b"mine")
    with pytest.raises(DemoError):
        theirs.get(PAYLOADS, 0.05)
    assert mine.get(PAYLOADS, 5) == b"mine"
    mine.destroy()
    theirs.destroy()


def test_a_server_that_stops_is_named(tmp_path: Path) -> None:
    """If the Redis server goes away meanwhile, the demo's error says so; clearing up still works."""
    with redis_server(tmp_path) as url:
        channel = new_redis_channel(url)
    with pytest.raises(DemoError, match="the Redis server failed"):
        channel.put(PAYLOADS, b"too late")
    with pytest.raises(DemoError, match="the Redis server failed"):
        channel.get(PAYLOADS, 0.05)
    channel.destroy()


def test_good_figures_are_no_problem() -> None:
    """The verdict on figures as they should be is empty, whatever pickle loses and ray.cloudpickle pins."""
    lost = dataclasses.replace(GOOD_WAY, way="pickle", came_back=0)
    pinned = dataclasses.replace(GOOD_WAY, way="ray.cloudpickle", leftover_bytes=9)
    assert problems((lost, pinned, GOOD_WAY), GOOD_HAND_OVER) == ()


@pytest.mark.parametrize(
    ("way", "hand_over", "words"),
    [
        ({"came_back": 2}, {}, "2 of 3 objects"),
        ({"leftover_bytes": 1}, {}, "1 bytes stayed"),
        ({}, {"checked_files": 2}, "only 2 of 3"),
        ({}, {"mismatches": 1, "mismatched_files": ("that.txt",)}, "that.txt"),
        ({}, {"store_after_bytes": 6}, "1 bytes stayed"),
        ({}, {"live_leases": 1}, "1 lease(s)"),
    ],
)
def test_each_wrong_figure_is_a_problem(way: dict[str, Any], hand_over: dict[str, Any], words: str) -> None:
    """A lost object, a missing or changed file, a left-over byte or lease is each reported, with its figure."""
    found = problems((dataclasses.replace(GOOD_WAY, **way),), dataclasses.replace(GOOD_HAND_OVER, **hand_over))
    assert len(found) == 1
    assert words in found[0]


def test_default_files_are_pythons_own() -> None:
    """Without FILE the demo takes 60 modules of the running Python, the same ones each time, largest first."""
    files = of_this_python()
    assert files == of_this_python()
    assert len(files) == 60
    assert [file.size_bytes for file in files] == sorted((file.size_bytes for file in files), reverse=True)
    assert all(Path(file.path).stat().st_size == file.size_bytes > 0 for file in files)
    assert not [file for file in files if "site-packages" in file.path]


def test_a_name_that_ray_cannot_take_is_refused(tmp_path: Path) -> None:
    """A file whose name isn't UTF-8 is refused with a reason, rather than by an error from inside Ray."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    Path(name).write_bytes(b"x")
    with pytest.raises(UsageError, match="not UTF-8"):
        given([name])


def test_the_store_fits_the_largest_file_or_the_demo_refuses() -> None:
    """The store has room for the largest file twice; a file for which the machine hasn't the memory is refused before the start."""
    assert store_size(0) == LEAST_STORE_BYTES
    assert store_size(1_000_000_000) >= 2_000_000_000
    with pytest.raises(UsageError, match="too large"):
        store_size(10**15)


def test_the_comparison_takes_the_first_few_that_fit() -> None:
    """Part 1 works on the first few files of a bounded size, and on the smallest if all are larger."""
    a, b, c = (File(name, name, size) for name, size in (("a", 5), ("b", 9), ("c", 4)))
    assert some([a, b, c], most=8, most_bytes=10) == [a, c]
    assert some([a, b, c], most=1, most_bytes=100) == [a]
    assert some([a, b], most=8, most_bytes=1) == [a]
