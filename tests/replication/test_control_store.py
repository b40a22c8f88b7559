"""What outlives a registry's actors: its keys in Ray's control store, which here is a dictionary."""

from __future__ import annotations

import pytest

from safe_refs._ray import control
from safe_refs.config import Limits
from safe_refs.replication import control_store
from safe_refs.replication.topology import completed, grown
from tests.support.shards_by_hand import Store

NAME = "any"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(monkeypatch)


def test_a_version_belongs_to_one_topology(store: Store) -> None:
    """Each topology has a larger version than all before, through growths, shutdowns and new starts."""
    versions: list[int] = []
    for _ in range(3):
        first = control_store.begin(NAME, 1, 1)
        grows = grown(first, 3)
        assert grows is not None
        assert control_store.change(NAME, grows)
        assert control_store.change(NAME, completed(grows))
        versions += [first.version, grows.version, completed(grows).version]
        control_store.close(NAME)
    assert versions == sorted(set(versions))


def test_processes_that_start_a_registry_at_once_go_by_one_topology(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one to write it decides; also a process that was slow uses no version that another topology had."""
    slow = dict(store.values)
    first = control_store.begin(NAME, 2, 1)
    assert control_store.begin(NAME, 3, 2) == first
    control_store.close(NAME)
    # This one read the count before all that.
    with monkeypatch.context() as patch:
        patch.setattr(control, "kv_get", lambda key, _: (slow if key.startswith("version") else store.values).get(key))
        assert control_store.begin(NAME, 3, 1).version != first.version


def test_a_registry_that_was_shut_down_leaves_two_counts(store: Store) -> None:
    """Of all that shards and growths have written nothing else stays, and a topology that comes too late is not written."""
    first = control_store.begin(NAME, 1, 1)
    grows = grown(first, 3)
    assert grows is not None
    control_store.change(NAME, grows)
    for shard in range(3):
        control_store.join(NAME, shard, Limits())
    control_store.close(NAME)
    assert sorted(store.values) == [f"generation:{NAME}", f"version:{NAME}"]
    assert not control_store.change(NAME, completed(grows))
    assert control_store.topology(NAME) is None


def test_a_shard_that_starts_again_gets_that_answer(store: Store) -> None:
    """With replicas it recovers, and the epoch stays; without, nobody has what it held, and another epoch begins."""
    control_store.begin(NAME, 2, 2)
    first = control_store.join(NAME, 0, Limits())
    assert not first.restarted
    assert control_store.join(NAME, 1, Limits()).identity == first.identity
    again = control_store.join(NAME, 0, Limits())
    assert again.restarted
    assert again.identity == first.identity
    control_store.close(NAME)
    control_store.begin(NAME, 2, 1)
    alone = control_store.join(NAME, 0, Limits())
    restarted = control_store.join(NAME, 0, Limits())
    assert not restarted.restarted
    assert restarted.identity.epoch != alone.identity.epoch
    assert restarted.identity.generation > alone.identity.generation > first.identity.generation
