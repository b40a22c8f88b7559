"""What the shards of a registry tell each other, without Ray: when one is away, fails, comes back, is lost, or the registry grows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from safe_refs.config import Deadline
from safe_refs.replication import control_store
from safe_refs.replication.part import Growth
from safe_refs.replication.topology import Topology
from tests.support.rules import ME
from tests.support.shards_by_hand import NAME, Registry
from tests.support.waiting import stays, wait_until

LEASES = [bytes([number]) * 16 for number in range(60)]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], Registry]]:
    """Makes registries; their threads have ended afterwards."""
    made: list[Registry] = []

    def make(shards: int, replicas: int) -> Registry:
        made.append(Registry(monkeypatch, shards, replicas))
        return made[-1]

    yield make
    for each in made:
        each.close()


Make = Callable[[int, int], Registry]


def is_recovering(registry: Registry, number: int) -> bool:
    return bool(registry.part(number).figures()["recovering"])


def topology() -> Topology:
    found = control_store.topology(NAME)
    assert found is not None
    return found


def test_growths_have_their_turn(registry: Make) -> None:
    """Shard 0 decides: of two growths at once the second waits, and each topology has a version of its own."""
    shards = registry(1, 1)
    for lease in LEASES:
        shards.pin(lease, "x")
    for number in range(1, 5):
        shards.start(number)
    first = topology()
    assert shards.part(0).grow(3) is Growth.UNDER_WAY
    assert shards.part(0).grow(5) is Growth.WAIT
    assert shards.part(0).grow(3) is Growth.UNDER_WAY
    growing = topology()
    assert (growing.shards, growing.before) == (3, 1)
    for number in range(5):
        shards.run(number)
    wait_until(lambda: shards.part(0).grow(3) is Growth.DONE)
    grown = topology()
    assert shards.part(0).grow(5) is Growth.UNDER_WAY
    wait_until(lambda: shards.part(0).grow(5) is Growth.DONE)
    assert first.version < growing.version < grown.version < topology().version
    assert [shards.holders(lease) for lease in LEASES] == [list(topology().holders(lease)) for lease in LEASES]


def test_a_registry_that_is_closing_does_not_grow(registry: Make) -> None:
    """Its topology is about to be deleted, and would be there again."""
    shards = registry(1, 1)
    shards.start(1)
    before = dict(shards.store.values)
    shards.shards[0].is_closing = True
    assert shards.part(0).grow(2) is Growth.WAIT
    assert shards.store.values == before


def test_a_shard_that_is_away_holds_up_no_other_shards_leases(registry: Make) -> None:
    """A growth goes on with those that answer; the one that was away gets its leases when it is back."""
    shards = registry(1, 1)
    for lease in LEASES:
        shards.pin(lease, "x")
    shards.start(1)
    shards.start(2)
    shards.away.add(1)
    assert shards.part(0).grow(3) is Growth.UNDER_WAY
    shards.run(0)
    wanted = {lease: topology().holders(lease)[0] for lease in LEASES}
    assert set(wanted.values()) == {0, 1, 2}
    wait_until(lambda: all(shards.holders(lease) == [2 if number == 2 else 0] for lease, number in wanted.items()))
    stays(lambda: shards.part(0).grow(3) is Growth.UNDER_WAY, 0.5)
    shards.away.clear()
    wait_until(lambda: shards.part(0).grow(3) is Growth.DONE)
    assert all(shards.holders(lease) == [number] for lease, number in wanted.items())


def test_a_growth_that_cannot_go_on_does_not_keep_a_shard_from_closing(registry: Make) -> None:
    """The thread ends when its shard closes, also while a shard is away that leases are to move to."""
    shards = registry(1, 1)
    for lease in LEASES:
        shards.pin(lease, "x")
    shards.start(1)
    shards.away.add(1)
    shards.part(0).grow(2)
    thread = shards.run(0)
    stays(thread.is_alive, 0.3)
    shards.shards[0].is_closing = True
    shards.part(0).closing(1.0)
    thread.join(3)
    assert not thread.is_alive()


def test_the_first_shard_ends_a_growth_that_it_forgot_in_a_crash(registry: Make) -> None:
    """All have moved, and it comes back and doesn't know: the others say so until the growth is over."""
    shards = registry(2, 2)
    for lease in LEASES:
        shards.pin(lease, "x")
    shards.start(2)
    assert shards.part(0).grow(3) is Growth.UNDER_WAY
    shards.part(1).look()
    shards.run(1)
    wait_until(lambda: shards.part(0)._rules._moved == {1})
    shards.start(0)
    assert is_recovering(shards, 0)
    shards.run(2)
    shards.run(0)
    wait_until(lambda: shards.part(0).grow(3) is Growth.DONE)
    wait_until(lambda: not any(is_recovering(shards, number) for number in range(3)))
    assert [shards.holders(lease) for lease in LEASES] == [sorted(topology().holders(lease)) for lease in LEASES]


def test_recovery_ends_though_a_shard_answers_with_an_error(registry: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails is asked again, like one that is away, and the others are asked as well."""
    shards = registry(3, 3)
    for lease in LEASES:
        shards.pin(lease, "x")
    shards.start(2)
    errors = iter(range(3))
    shards.refused = lambda number, method: number == 0 and next(errors, None) is not None
    shards.run(2)
    wait_until(lambda: not is_recovering(shards, 2))
    assert all(2 in shards.holders(lease) for lease in LEASES)


def test_recovery_ends_though_its_thread_fails(registry: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control store can't be reached as the shard is about to begin a new epoch: it does so when it can, once."""
    shards = registry(2, 2)
    shards.pin(LEASES[0], "x")
    identity = shards.shards[0].table.identity
    shards.start(0)
    shards.start(1)  # both have lost what they held
    new_epoch, fails = control_store.new_epoch, iter([True])

    def failing(registry: str, deadline: Deadline | None) -> object:
        if next(fails, False):
            raise OSError("the control store is away")
        return new_epoch(registry, deadline)

    monkeypatch.setattr(control_store, "new_epoch", failing)
    shards.run(0)
    wait_until(lambda: not is_recovering(shards, 0))
    assert shards.shards[0].table.identity.generation == identity.generation + 1


def test_a_peer_that_never_comes_back_is_waited_for_no_longer_than_so(registry: Make) -> None:
    """Recovery ends, and says that leases may be lost."""
    shards = registry(2, 2)
    identity = shards.shards[0].table.identity
    shards.away.add(1)
    part = shards.start(0)
    part._peers._recovers_by -= 29.5
    shards.run(0)
    wait_until(lambda: not is_recovering(shards, 0))
    assert shards.shards[0].table.identity != identity


def test_news_that_one_shard_does_not_take_are_kept_for_it_and_others_get_theirs(registry: Make) -> None:
    """Also if its answer is an error."""
    shards = registry(3, 3)
    shards.pin(LEASES[0], "x")
    shards.refused = lambda number, method: number == 1 and method == "Replication.receive"
    shard = shards.shards[0]
    with shard.lock:
        shard.table.release(LEASES[0], ME)
        shard.parts.changed([LEASES[0]])
    shards.run(0)
    wait_until(lambda: shards.holders(LEASES[0]) == [1])
    shards.refused = lambda number, method: False
    wait_until(lambda: shards.holders(LEASES[0]) == [])


def test_what_is_lost_here_comes_back_from_another_holder(registry: Make) -> None:
    """Its holders are asked until they answer."""
    shards = registry(2, 2)
    shards.pin(LEASES[0], "x")
    shards.away.add(1)
    for number in range(2):
        shards.run(number)
    shard = shards.shards[0]
    with shard.lock:
        shard.lose([LEASES[0]], "the node that had it is dead")
    stays(lambda: shards.holders(LEASES[0]) == [1], 0.3)
    shards.away.clear()
    wait_until(lambda: shards.holders(LEASES[0]) == [0, 1])


def test_threads_end_with_their_shard(registry: Make) -> None:
    """Also one that has nothing to do."""
    shards = registry(2, 2)
    thread: threading.Thread = shards.run(0)
    stays(thread.is_alive, 0.2)
    shards.close()
    assert not thread.is_alive()
