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
from pathlib import Path
from typing import Any

import pytest

from safe_refs import __version__
from safe_refs.demo.figures import HandOver, Way
from tests.support.waiting import comes, wait_until

COMMAND = str(Path(sys.executable).with_name("safe-refs"))
TIMEOUT_S = 120
SWITCH = "RAY_allow_out_of_band_object_ref_serialization"


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


@pytest.mark.long
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
            wait_until(
                lambda: running.poll() is not None or any(spare.glob("safe_refs-*/session_*/sockets/*")),
                60,
                "Ray starts",
            )
            assert running.poll() is None
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=60)
        finally:
            running.kill()
            running.wait(timeout=10)
        assert errors == "safe-refs: interrupted\n"
        assert running.returncode == 130
        assert list(spare.iterdir()) == []
        comes(lambda: not processes_naming(str(spare)), 15)
        assert processes_naming(str(spare)) == []
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
