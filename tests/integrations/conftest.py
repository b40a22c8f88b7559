"""A maker and a reader: two jobs. The first lives on, with nothing in its hands, while the second reads what it left in a file."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

import safe_refs
from tests.conftest import PRELUDE, RAYS_MARKS, run_python
from tests.integrations.store import pinned, pinned_once

_PRELUDE = PRELUDE + "from tests.integrations.store import pinned, pinned_from, pinned_once\n"

# It makes the thing twice: once without a payload, to show that it then goes, and once with. The first time it waits until all is
# computed: Ray now and then leaves behind what a task returns if nobody wants it any more by then.
_MAKE = """
path, size, limit = args[0], int(args[1]), int(args[2])
thing = make()
finish(thing)
held = pinned_from(size)
del thing
gc.collect()
alone = pinned_once(limit)
with open(path, "wb") as file:
    safe_refs.dump(make(), file)
gc.collect()
print(json.dumps([held, alone, pinned_from(size)]), flush=True)
sys.stdin.readline()
"""
_READ = """
with open(args[0], "rb") as file:
    payload = file.read()
value = use(safe_refs.loads(payload))
gc.collect()
print(json.dumps([value, pinned(), safe_refs.release(payload)]))
"""


class HandOver(Protocol):
    """Hand what `make()` returns from one job to another, by a file, and return what `use` there makes of it."""

    def __call__(self, make: str, use: str, *, size: int, left: int = 0) -> Any:
        """Run both jobs, with the maker alive all the time.

        What is checked: without a payload the thing goes as soon as its maker lets go of it; with one it stays, and is good in the
        other job; when that one has released the payload, no lease and no byte is left.

        Args:
            make: Python code that defines `make()`, and `finish(thing)`, which waits until all of the thing is computed.
            use: Python code that defines `use(thing)`, whose result is JSON; `payload` is there, too.
            size: how many bytes of the store the thing takes, at least.
            left: how many bytes the library may keep in the maker for itself.
        """


@pytest.fixture
def hand_over(ray_cluster: str, tmp_path: Path) -> HandOver:
    """See `HandOver`."""

    def run(make: str, use: str, *, size: int, left: int = 0) -> Any:
        path, log = tmp_path / "thing.payload", tmp_path / "maker.log"
        before = pinned()
        limit, size = before + left + RAYS_MARKS, before + size
        maker = _PRELUDE + textwrap.dedent(make) + _MAKE
        reader = _PRELUDE + textwrap.dedent(use) + _READ
        with (
            log.open("w") as errors,
            subprocess.Popen(
                [sys.executable, "-c", maker, ray_cluster, str(path), str(size), str(limit)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            try:
                assert process.stdout is not None
                said = process.stdout.readline()
                assert said, f"the maker failed:\n{log.read_text()}"
                held, alone, kept = json.loads(said)
                assert held >= size
                assert alone <= limit
                assert kept >= size
                assert [row.pid for row in safe_refs.leases()] == [process.pid]
                value, kept, released = run_python(reader, ray_cluster, str(path))
                assert kept >= size
                assert released == 1
                assert safe_refs.leases() == []
                assert pinned_once(limit) <= limit
                process.communicate("end\n", timeout=30)
                assert process.returncode == 0, log.read_text()
            finally:
                process.kill()
        return value

    return run


@pytest.fixture
def cluster(ray_cluster: str) -> Iterator[str]:
    """The session's Ray, watched as in the other tests, but for what Ray may drop: see `store`."""
    before = pinned_once(RAYS_MARKS)
    yield ray_cluster
    gc.collect()
    left = safe_refs.leases() if safe_refs.stats() is not None else []
    if left:
        safe_refs.shutdown()
    assert left == []
    assert pinned_once(before + RAYS_MARKS) <= before + RAYS_MARKS
