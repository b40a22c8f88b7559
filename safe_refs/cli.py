"""The command `safe-refs`: what a shell can ask of the library.

What always holds: exit status 0 is success, 1 a failure of what was tried, 2 something to be changed on the command line or in the
installation, 130 an interruption; errors are one line on standard error. What a subcommand needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from ._version import __version__

_DEMO = """\
Hand real files from one Ray job to another, on a small local Ray that is started for it and stopped afterwards.

Part 1 pickles references in three ways, on the same objects, and shows what the object store holds at each step: plain pickle
loses the objects, ray.cloudpickle pins them until their maker's process ends, safe_refs keeps them until they are released.

Part 2 is the real hand-over: a producer puts each file into the store and sends payloads (name, size, SHA-256, reference) through a
channel outside Ray; a consumer, a driver of another Ray job, loads them, checks every hash, and releases. At the end the store
must be as empty as before."""

_DEMO_END = """\
exit status: 0 all arrived and nothing stayed behind; 1 a mismatch, a leftover, or a failure; 2 it couldn't start; 130 interrupted

--json prints one document: ok, problems, safe_refs_version, ray_version, store_size_bytes, duration_s; three_ways, a list (way,
refused, objects, came_back, leftover_bytes, and the bytes in the store at each step: before_bytes, pickled_bytes,
maker_dropped_bytes, all_dropped_bytes, released_bytes, maker_ended_bytes); hand_over (channel, producer_job, consumer_job,
files, bytes, checked_files, mismatches, mismatched_files, store_before_bytes, store_peak_bytes, store_after_bytes, live_leases,
duration_s)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None takes those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: from `argparse`, for `--help`, `--version` and arguments that it doesn't know.
    """
    parser = argparse.ArgumentParser(prog="safe-refs", description="Let Ray references leave Ray, and come back.")
    parser.add_argument("--version", action="version", version=f"safe-refs {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo = commands.add_parser(
        "demo",
        help="the library's main job, on real files",
        description=_DEMO,
        epilog=_DEMO_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument(
        "files", nargs="*", metavar="FILE", help="what to hand over; default: files of the running Python"
    )
    demo.add_argument("--redis", metavar="URL", help="hand over by this Redis server, rather than a SQLite file")
    demo.add_argument("--json", action="store_true", help="print the figures as one JSON document")
    given = parser.parse_args(argv)
    return _demo(given.files, given.redis, given.json)


def _demo(files: Sequence[str], redis_url: str | None, as_json: bool) -> int:
    from .demo.failure import DemoError, UsageError
    from .demo.run import run

    # A closed terminal is an interruption, too, unless nohup said otherwise. (Ray sees to SIGTERM.)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        return 0 if run(files, redis_url, as_json).ok else 1
    except UsageError as error:
        return _fail(error, 2)
    except DemoError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(reason: object, status: int) -> int:
    text = f"safe-refs: {reason}"
    print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
