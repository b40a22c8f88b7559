"""Fixtures: a Redis server for the demo."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.servers import redis_server


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server for all tests of this file."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url
