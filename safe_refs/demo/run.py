"""The demo from its first line to its last.

What always holds: what can be refused (files, memory, Redis, missing packages) is refused before Ray is started.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from contextlib import ExitStack

from .._version import __version__
from .channel import SQLiteChannel, new_redis_channel
from .failure import UsageError
from .figures import Outcome, problems
from .files import given, of_this_python, some
from .local_ray import CPUS, running, store_size

_COMPARED_FILES = 8
_COMPARED_BYTES = 20_000_000


def run(names: Sequence[str], redis_url: str | None, as_json: bool) -> Outcome:
    """Run the demo and show it.

    Args:
        names: files to hand over; without any, files of the running Python.
        redis_url: a Redis server to hand over by; None is a SQLite file.
        as_json: print figures as JSON, rather than tables.

    Raises:
        UsageError: it can't start with that.
        DemoError: Ray, the channel or a child process failed.
    """
    for package, wanted in (("rich", "rich"), ("grpc", "grpcio")):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"the package `{wanted}` isn't installed: pip install 'safe-refs[demo]'")
    from rich.filesize import decimal

    from . import hand_over, three_ways
    from .screen import Screen

    begun = time.monotonic()
    files = given(names) if names else of_this_python()
    total = sum(file.size_bytes for file in files)
    size = store_size(max(file.size_bytes for file in files))
    screen = Screen(as_json)
    with ExitStack() as stack:
        redis = None if redis_url is None else stack.enter_context(new_redis_channel(redis_url))
        with screen.waiting("starting a small local Ray"):
            local = stack.enter_context(running(size))
        if redis is not None:
            stack.callback(redis.destroy)
        import ray

        screen.say(
            f"safe_refs {__version__} on a small Ray {ray.__version__} of its own: {CPUS} CPUs, a store of {decimal(size)}."
        )
        screen.say(f"{len(files)} {'files' if names else 'files of the running Python'}, {decimal(total)}.")

        chosen = some(files, _COMPARED_FILES, _COMPARED_BYTES)
        screen.heading("1. Three ways to pickle references")
        screen.say(
            f"A process, the maker, puts {len(chosen)} of the files ({decimal(sum(file.size_bytes for file in chosen))}) into "
            "Ray's object store, pickles the references, and lets go of its own. Another process loads the pickles, fetches the "
            "files, and lets go, too. What the store holds after each step:"
        )
        with screen.steps(three_ways.STEPS * len(three_ways.WAYS)) as step:
            ways = three_ways.run(chosen, step)
        screen.three_ways(ways)

        channel = redis or stack.enter_context(SQLiteChannel(local.folder / "channel.sqlite"))
        screen.heading("2. The hand-over")
        screen.say(
            "A producer puts each file into the store and sends a payload (name, size, SHA-256, reference) through a channel "
            "outside Ray. An independent consumer loads it, checks the hash, and releases."
        )
        with screen.transfer(total) as progress:
            handed_over = hand_over.run(local, files, channel, progress)
        screen.hand_over(handed_over)
        with screen.waiting("stopping Ray"):
            stack.close()
    wrong = problems(ways, handed_over)
    outcome = Outcome(
        ok=not wrong,
        problems=wrong,
        safe_refs_version=__version__,
        ray_version=ray.__version__,
        store_size_bytes=size,
        three_ways=ways,
        hand_over=handed_over,
        duration_s=round(time.monotonic() - begun, 3),
    )
    screen.outcome(outcome)
    return outcome
