"""Fixtures of tests with other libraries: two jobs, and a watch that allows for what the libraries leave."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import safe_refs
from tests.integrations.jobs import JOB, MAKE, READ, HandOver
from tests.integrations.store import counted, pinned, pinned_once
from tests.support.processes import run_python
from tests.support.store import RAYS_MARKS


@pytest.fixture
def hand_over(ray_cluster: str, tmp_path: Path) -> HandOver:
    """See `HandOver`."""

    def run(make: str, use: str, *, size: int, left: int = 0) -> Any:
        path, log = tmp_path / "thing.payload", tmp_path / "maker.log"
        before = pinned()
        limit, size = before + left + RAYS_MARKS, before + size
        maker = JOB + textwrap.dedent(make) + MAKE
        reader = JOB + textwrap.dedent(use) + READ
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
        safe_refs.shutdown(force=True)
    assert left == []
    if pinned_once(before + RAYS_MARKS) > before + RAYS_MARKS:
        # Now and then Ray keeps an object that no process counts, as a task's value has come when its job was over.
        assert counted() == ""
