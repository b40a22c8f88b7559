"""`safe-refs demo`, run as people run it: as a process of its own, with a Ray of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers import redis_server
from safe_refs import __version__
from safe_refs.demo.channel import ANSWERS, PAYLOADS, Channel, SQLiteChannel, new_redis_channel, open_channel
from safe_refs.demo.failure import DemoError, UsageError
from safe_refs.demo.figures import HandOver, Way, problems
from safe_refs.demo.files import File, given, of_this_python, some
from safe_refs.demo.local_ray import LEAST_STORE_BYTES, store_size

COMMAND = str(Path(sys.executable).with_name("safe-refs"))
TIMEOUT_S = 120
SWITCH = "RAY_allow_out_of_band_object_ref_serialization"

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


def environment(**more: str) -> dict[str, str]:
    """An environment in which Ray's switch against out-of-band references is as it comes, unless told otherwise."""
    kept = {name: value for name, value in os.environ.items() if name != SWITCH}
    return {**kept, "COLUMNS": "100", **more}


def demo(folder: Path, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `safe-refs demo`, as it was installed, in a folder."""
    return run(folder, COMMAND, "demo", *args, **more)


def run_code(folder: Path, code: str, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a folder, which it doesn't import from."""
    code = "import sys; sys.path.remove('')\n" + textwrap.dedent(code)
    return run(folder, sys.executable, "-c", code, *args, **more)


def run(folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=folder, env=environment(**more)
    )


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Files of the troublesome kinds: an empty one, odd names, one that is called like a module that the demo's processes import."""
    folder = tmp_path / "files"
    folder.mkdir()
    contents = {
        "empty": b"",
        "a [b] ä.txt": b"hi",
        "json.py": b"import nothing of the kind\n",
        "big": os.urandom(3_000_000),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return sorted(contents)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server for all tests of this file."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


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


def ways_of(outcome: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {way["way"]: way for way in outcome["three_ways"]}


def processes_naming(text: str) -> list[str]:
    """Command lines of the processes that name something."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(line)
    return found


@pytest.mark.long
def test_files_are_handed_over_and_nothing_stays(tmp_path: Path, files: list[str]) -> None:
    """Of the three ways only safe_refs gives the objects back and the store free; every file arrives whole in another Ray job."""
    done = demo(tmp_path / "files", *files, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    outcome = json.loads(done.stdout)
    size = sum((tmp_path / "files" / name).stat().st_size for name in files)
    assert outcome["ok"] is True
    assert outcome["problems"] == []
    assert outcome["safe_refs_version"] == __version__

    ways = ways_of(outcome)
    assert list(ways) == ["pickle", "ray.cloudpickle", "safe_refs"]
    for way in ways.values():
        assert way["objects"] == len(files)
        assert way["refused"] is False
        assert way["pickled_bytes"] - way["before_bytes"] >= size
        assert way["maker_ended_bytes"] <= way["before_bytes"]
    lost, pinned, kept = ways.values()
    assert lost["came_back"] == 0
    assert lost["leftover_bytes"] == 0
    assert pinned["came_back"] == len(files)
    assert pinned["leftover_bytes"] >= size
    assert pinned["released_bytes"] is None
    assert kept["came_back"] == len(files)
    assert kept["all_dropped_bytes"] - kept["before_bytes"] >= size
    assert kept["released_bytes"] == kept["before_bytes"]
    assert kept["leftover_bytes"] == 0

    handed = outcome["hand_over"]
    assert handed["channel"] == "sqlite"
    assert handed["producer_job"] != handed["consumer_job"]
    assert (handed["files"], handed["checked_files"], handed["bytes"]) == (len(files), len(files), size)
    assert (handed["mismatches"], handed["mismatched_files"]) == (0, [])
    assert handed["store_peak_bytes"] > handed["store_before_bytes"]
    assert handed["store_after_bytes"] <= handed["store_before_bytes"]
    assert handed["live_leases"] == 0


@pytest.mark.long
def test_everything_but_cloudpickle_works_under_rays_switch(tmp_path: Path, files: list[str], redis_url: str) -> None:
    """With Ray's switch against hidden pins on, ray.cloudpickle is shown as refused; the hand-over, here by Redis, leaves no key."""
    import redis

    done = demo(tmp_path / "files", *files, "--json", "--redis", redis_url, **{SWITCH: "0"})
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    ways = ways_of(outcome)
    assert ways["ray.cloudpickle"]["refused"] is True
    assert ways["safe_refs"]["refused"] is False
    assert ways["safe_refs"]["came_back"] == len(files)
    assert outcome["hand_over"]["channel"] == "redis"
    assert outcome["hand_over"]["checked_files"] == len(files)
    with redis.Redis.from_url(redis_url) as server:
        assert server.dbsize() == 0


# Runs part 2 alone, with a fault (the first argument, a piece of code) that the producer and the consumer start with.
BROKEN = """
import sys
from safe_refs.demo import child, three_ways
from safe_refs.cli import main

three_ways.WAYS = ()
child.START = "import sys; sys.path.remove('')\\n" + sys.argv.pop(1) + child.START
sys.exit(main())
"""


@pytest.mark.long
def test_wrong_hashes_and_forgotten_leases_are_a_failure(tmp_path: Path, files: list[str]) -> None:
    """If what arrives is not what was sent, or somebody forgets to release, the demo says so and exits with status 1."""
    fault = (
        "import types, hashlib, safe_refs, safe_refs.demo.producer as p\n"
        "p.hashlib = types.SimpleNamespace(sha256=lambda data: hashlib.sha256(data + b'!'))\n"
        "safe_refs.release = lambda payload: 0\n"
    )
    done = run_code(tmp_path / "files", BROKEN, fault, "demo", "--", *files)
    assert done.returncode == 1
    assert "4 file(s) arrived changed" in done.stderr
    assert all(name in done.stderr for name in files)
    assert "4 lease(s) stayed behind" in done.stderr
    assert "bytes stayed in the store after the hand-over" in done.stderr
    assert "Good" not in done.stdout
    assert "mismatches" in done.stdout


@pytest.mark.long
def test_a_crashed_process_ends_the_demo(tmp_path: Path, files: list[str]) -> None:
    """If the consumer dies, the demo ends at once, in one line, with status 1."""
    fault = (
        "import safe_refs.demo.consumer as c\n"
        "def check(item): raise SystemExit('the roof is on fire')\n"
        "c.check = check\n"
    )
    begun = time.monotonic()
    done = run_code(tmp_path / "files", BROKEN, fault, "demo", "--json", *files)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "safe-refs: the consumer failed: the roof is on fire\n"
    assert time.monotonic() - begun < 60


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, files: list[str]) -> None:
    """Ctrl-C ends the demo with status 130 and one line, and with it its Ray and its temporary files, even while Ray is starting."""
    # Ray's sockets need a short path.
    spare = Path("/tmp", f"t{os.getpid()}")  # noqa: S108
    spare.mkdir()
    try:
        running = subprocess.Popen(
            [COMMAND, "demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(TMPDIR=str(spare)),
        )
        try:
            deadline = time.monotonic() + 60
            while not list(spare.glob("safe_refs-*/session_*/sockets/*")):
                assert running.poll() is None
                assert time.monotonic() < deadline, "Ray did not start"
                time.sleep(0.05)
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=60)
        finally:
            running.kill()
            running.wait(timeout=10)
        assert errors == "safe-refs: interrupted\n"
        assert running.returncode == 130
        assert list(spare.iterdir()) == []
        deadline = time.monotonic() + 15
        while left := processes_naming(str(spare)):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    finally:
        shutil.rmtree(spare, ignore_errors=True)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["nowhere"], "nowhere can't be read: No such file or directory"),
        (["."], ". is a directory"),
        (["/dev/null"], "/dev/null is not a regular file"),
        (["--redis", "redis://127.0.0.1:1/0"], "the Redis server can't be used"),
        (["--redis", "nonsense"], "the Redis server can't be used"),
    ],
)
def test_what_cannot_start_is_refused_in_one_line(tmp_path: Path, args: list[str], reason: str) -> None:
    """A file or a server that can't be used ends the command with status 2 and one line, before Ray is started."""
    done = demo(tmp_path, *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"safe-refs: {reason}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "args", "remedy"),
    [
        ("rich", [], "the package `rich` isn't installed: pip install 'safe-refs[demo]'"),
        ("grpc", [], "the package `grpcio` isn't installed: pip install 'safe-refs[demo]'"),
        (
            "redis",
            ["--redis", "redis://127.0.0.1"],
            "the package `redis` isn't installed: pip install 'safe-refs[redis]'",
        ),
    ],
)
def test_a_missing_extra_is_named(tmp_path: Path, package: str, args: list[str], remedy: str) -> None:
    """Without the packages of an extra the command says which extra to install, with status 2."""
    code = f"""
        import importlib.util, sys
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *more: None if name == {package!r} else find(name, *more)
        class Hide:
            def find_spec(self, name, path=None, target=None):
                if name == {package!r}:
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Hide())
        from safe_refs.cli import main
        sys.exit(main())
    """
    done = run_code(tmp_path, code, "demo", *args)
    assert done.returncode == 2
    assert done.stderr == f"safe-refs: {remedy}\n"


def test_the_command_explains_itself(tmp_path: Path) -> None:
    """`--version` and `--help` answer without starting anything, and the help names every key of the JSON document."""
    version = run(tmp_path, COMMAND, "--version")
    assert (version.returncode, version.stdout) == (0, f"safe-refs {__version__}\n")
    nothing = run(tmp_path, COMMAND)
    assert nothing.returncode == 2
    help_text = demo(tmp_path, "--help").stdout
    keys = [field.name for kind in (Way, HandOver) for field in dataclasses.fields(kind)]
    assert [key for key in keys if key not in help_text] == []


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
