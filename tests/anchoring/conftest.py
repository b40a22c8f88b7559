"""What the tests of drivers that leave Ray share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
import ray

from tests.support.actors import Owner
from tests.support.cluster import as_actor


@pytest.fixture
def owner(cluster: str) -> Iterator[str]:
    """The name of an actor that outlives the test's drivers, and makes objects for them."""
    name = f"owner-{uuid.uuid4().hex[:8]}"
    actor = as_actor(Owner).options(name=name, namespace="test").remote()
    ray.get(actor.pid.remote(), timeout=60)
    yield name
    ray.kill(actor)
