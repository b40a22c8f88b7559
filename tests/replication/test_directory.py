"""How a process finds out how many shards a registry has, and which it refuses. Ray's control store is a dictionary here."""

from __future__ import annotations

import pytest

from safe_refs.replication import control_store
from safe_refs.replication.directory import TopologyDirectory
from tests.support.shards_by_hand import Store

NAME = "any"


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> TopologyDirectory:
    """That of a process that asks for nothing special."""
    Store(monkeypatch)
    for name in ("SAFE_REFS_SHARDS", "SAFE_REFS_REPLICAS"):
        monkeypatch.delenv(name, raising=False)
    return TopologyDirectory()


def shape(directory: TopologyDirectory) -> tuple[int, int]:
    found = directory.find(NAME, start=True)
    assert found is not None
    return found.shards, found.replicas


def test_a_registry_begins_as_the_process_asks_for(
    directory: TopologyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard unless it asks for more; as many shards as replicas unless it says how many."""
    assert directory.find(NAME, start=False) is None
    assert shape(directory) == (1, 1)
    directory.forget(NAME)
    monkeypatch.setenv("SAFE_REFS_REPLICAS", "2")
    assert shape(directory) == (2, 2)
    directory.forget(NAME)
    monkeypatch.setenv("SAFE_REFS_SHARDS", "1")
    with pytest.raises(ValueError, match="2 replicas need as many shards at least, not 1: give shards=2 or more"):
        directory.find(NAME, start=True)
    assert directory.found(NAME) is None


def test_a_registry_that_runs_is_taken_as_it_is(directory: TopologyDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this process would start itself."""
    control_store.begin(NAME, 3, 2)
    for shards, replicas in ((2, 2), (4, 1)):
        monkeypatch.setenv("SAFE_REFS_SHARDS", str(shards))
        monkeypatch.setenv("SAFE_REFS_REPLICAS", str(replicas))
        assert shape(directory) == (3, 2)
        assert directory.find(NAME, start=False) == directory.found(NAME)


def test_a_registry_that_another_process_has_shut_down_begins_as_it_was(directory: TopologyDirectory) -> None:
    """A process that used it with several shards starts it so; but not if it has shut the registry down itself."""
    control_store.begin(NAME, 3, 2)
    assert shape(directory) == (3, 2)
    control_store.close(NAME)
    assert shape(directory) == (3, 2)
    directory.forget(NAME)
    assert shape(directory) == (1, 1)


def test_what_is_remembered_is_bounded(directory: TopologyDirectory) -> None:
    """A process that uses ever more registries keeps the last ones."""
    for number in range(200):
        directory.find(f"r{number}", start=True)
    assert len(directory._last) == 64
    assert "r199" in directory._last
