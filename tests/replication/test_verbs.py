"""What a process asks several shards, and what it makes of their answers, without Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from safe_refs._ray.workers import Connection
from safe_refs.config import Deadline
from safe_refs.envelope import LeaseAddress
from safe_refs.errors import LeaseReleasedError, RegistryFullError, RegistryUnavailableError, SafeRefsError
from safe_refs.registry.calls import Call, NoRegistryError, Registry
from safe_refs.registry.records import Identity, Terms
from safe_refs.registry.requests import Plan, Question, Wanted
from safe_refs.registry.shard import Shard
from safe_refs.registry.wire import NotNow, PinCall, ReleaseCall, ResolveCall, Silence
from safe_refs.replication.topology import Topology
from safe_refs.replication.verbs import ReplicatedVerbs
from tests.support.rules import ME, STARTED

LATER = Deadline(1e18, 30.0)
HELD = STARTED.to_bytes()
NEWER = Identity(b"epoch..2", 4)
Answers = Mapping[int, Any] | Callable[[int, Call[Any]], Any]


class Here:
    """A process without parts, that is no Ray Client."""

    connection = Connection(b"cluster", "01000000")
    address = b"here"
    parts: tuple[object, ...] = ()


class Answering:
    """A registry whose shards answer as the test says, one after the other round."""

    name = "any"
    here = Here()

    def __init__(self, *rounds: Answers) -> None:
        self.rounds = list(rounds)
        self.asked: list[dict[int, Call[Any]]] = []
        self.identity: Identity | None = None
        self.forgotten = self.pauses = 0

    def ask(self, calls: Mapping[int, Call[Any]], deadline: Deadline, **how: Any) -> dict[int, Any]:
        self.asked.append(dict(calls))
        answers = self.rounds.pop(0)
        return {shard: answers(shard, call) if callable(answers) else answers[shard] for shard, call in calls.items()}

    def forget_layout(self) -> None:
        self.forgotten += 1

    def pause(self, deadline: Deadline) -> None:
        self.pauses += 1

    def no_answer(self, deadline: Deadline) -> RegistryUnavailableError:
        return RegistryUnavailableError("late")


def verbs(registry: Answering, topology: Topology) -> ReplicatedVerbs:
    return ReplicatedVerbs(cast("Registry", registry), topology)


def plan(lease: bytes) -> Plan:
    return Plan(lease, ["x"], Terms(), ME)


def wanted(lease: bytes, *, take: bool = False) -> Wanted:
    return Wanted(LeaseAddress("any", b"cluster", *STARTED, lease), None, take, ME, b"use....1")


def leases(topology: Topology, *shards: int, count: int = 1) -> list[bytes]:
    """Ids of leases that those shards hold, the deciding one first."""
    ids = (number.to_bytes(16, "big") for number in range(10_000))
    found = [lease for lease in ids if topology.holders(lease) == shards]
    return found[:count]


def sent(call: Call[Any], how: Any) -> Any:
    """The NamedTuple in a call."""
    return how.unpack(call.args[0]) if hasattr(how, "unpack") else call.args[0]


def test_leases_that_begin_together_go_in_one_call_to_each_shard() -> None:
    """Each shard gets those that it is to hold; the newest identity that a holder answers is that of the lease."""
    topology = Topology(7, shards=3, replicas=2)
    first, second = leases(topology, 0, 1)[0], leases(topology, 1, 2)[0]
    registry = Answering({0: [HELD], 1: [NEWER.to_bytes(), HELD], 2: [HELD]})
    assert verbs(registry, topology).pin_once([plan(first), plan(second)], LATER) == [NEWER, STARTED]
    (calls,) = registry.asked
    assert {shard: [row.lease for row in sent(call, PinCall).rows] for shard, call in calls.items()} == {
        0: [first],
        1: [first, second],
        2: [second],
    }
    assert sent(calls[0], PinCall).version == 7


def test_a_shard_that_holds_all_says_so_once() -> None:
    """By the identity alone; another holder of the same leases may refuse some of them, one by one."""
    topology = Topology(7, shards=2, replicas=2)
    first, second = leases(topology, 0, 1, count=2)
    full = RegistryFullError("full")
    registry = Answering({0: HELD, 1: NEWER.to_bytes()}, {0: HELD, 1: [HELD, full]}, {0: HELD, 1: NotNow.STALE})
    asking = verbs(registry, topology)
    assert asking.pin_once([plan(first), plan(second)], LATER) == [NEWER, NEWER]
    assert asking.pin_once([plan(first), plan(second)], LATER) == [STARTED, full]
    assert asking.pin_once([plan(first), plan(second)], LATER) == [None, None]


def test_a_lease_is_not_pinned_twice_where_it_is_held(caplog: pytest.LogCaptureFixture) -> None:
    """A holder that goes by another topology is asked again, by itself; the other has it already."""
    topology = Topology(7, shards=2, replicas=2)
    (lease,) = leases(topology, 0, 1)
    registry = Answering({0: [HELD], 1: NotNow.STALE}, {1: [HELD]})
    begun = plan(lease)
    assert verbs(registry, topology).pin_once([begun], LATER) == [None]
    assert registry.forgotten == 1
    assert verbs(registry, topology._replace(version=8)).pin_once([begun], LATER) == [STARTED]


def test_dead_holders_get_their_leases_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """One call for all that one holder has and another is to get, and one line in the log; if that fails, they are asked again."""
    topology = Topology(7, shards=2, replicas=2)
    three = leases(topology, 0, 1, count=3)
    registry = Answering({0: [HELD] * 3, 1: Silence.DEAD}, {0: True}, {0: [HELD], 1: Silence.DEAD}, {0: Silence.DEAD})
    asking = verbs(registry, topology)
    with caplog.at_level(logging.WARNING, logger="safe_refs"):
        assert asking.pin_once([plan(lease) for lease in three], LATER) == [STARTED] * 3
    (line,) = caplog.messages
    assert line.startswith("3 leases are held by 1 of 2 replicas: shard(s) 1 of registry 'any' are down")
    assert registry.asked[1][0].args == ("Replication.repair", three, (1,))
    begun = plan(three[0])
    assert asking.pin_once([begun], LATER) == [None]
    registry.rounds = [{0: [HELD], 1: [HELD]}]
    assert asking.pin_once([begun], LATER) == [STARTED]
    assert len(caplog.messages) == 1


def test_of_several_pins_only_those_without_an_answer_are_asked_again() -> None:
    """A shard that doesn't respond does not fail what others have answered; a single pin fails in time."""
    topology = Topology(7, shards=2, replicas=1)
    (here,), (there,) = leases(topology, 0), leases(topology, 1)
    full = RegistryFullError("full")
    registry = Answering({0: [full], 1: Silence.LATE}, {1: Silence.LATE})
    assert verbs(registry, topology).pin_once([plan(here), plan(there)], LATER) == [full, None]
    with pytest.raises(RegistryUnavailableError):
        verbs(registry, topology).pin_once([plan(there)], LATER)


def test_what_is_resolved_together_comes_from_all_holders() -> None:
    """A lease counts as resolved if all give it; takes go by themselves where several shards decide."""
    topology = Topology(7, shards=2, replicas=2)
    whole, half, taken = leases(topology, 0, 1, count=3)
    gone = LeaseReleasedError.of("short", "any", 0.0, "")
    registry = Answering({0: ([1, gone], ["w"]), 1: ([1, 1], ["w", "h"])})
    found = verbs(registry, topology).resolve_once([wanted(whole), wanted(half), wanted(taken, take=True)], LATER)
    assert found == [["w"], None, None]
    # They only look: a use that counts is not to be granted by two at once.
    assert [row.use for row in sent(registry.asked[0][0], ResolveCall).rows] == [b"", b""]


def test_where_one_shard_decides_takes_are_resolved_together() -> None:
    """Without replicas a lease has one holder, that counts the use at once."""
    topology = Topology(7, shards=2, replicas=1)
    (here,), (there,) = leases(topology, 0), leases(topology, 1)
    registry = Answering({0: ([1], ["a"]), 1: NotNow.STALE})
    rows = [wanted(here, take=True), wanted(there)]
    assert verbs(registry, topology).resolve_once(rows, LATER) == [["a"], None]
    assert [row.use for row in sent(registry.asked[0][0], ResolveCall).rows] == [b"use....1"]
    assert registry.forgotten == 1


def question(lease: bytes, *, in_turn: bool) -> Question[Any]:
    def call(version: int, counts: bool, _: object) -> Call[Any]:
        return Call(Shard.resolve, ResolveCall(version, [wanted(lease).row(counts=counts)]))

    return Question(wanted(lease).address, call, lambda answer: answer, in_turn=in_turn)


def test_a_use_is_asked_of_one_holder_after_the_other_and_granted_once() -> None:
    """Also over two attempts: the first holder is not asked again for what it has granted."""
    topology = Topology(7, shards=2, replicas=2)
    (lease,) = leases(topology, 0, 1)
    registry = Answering({0: NotNow.IN_TURN, 1: NotNow.IN_TURN}, {0: "granted"}, {1: NotNow.STALE}, {1: "granted"})
    asked = question(lease, in_turn=False)
    assert verbs(registry, topology).ask_once(asked, LATER) is None
    assert verbs(registry, topology._replace(version=8)).ask_once(asked, LATER) == "granted"
    assert [sorted(calls) for calls in registry.asked] == [[0, 1], [0], [1], [1]]


def test_a_silent_holder_is_asked_again_until_the_time_is_over() -> None:
    """While the other one can't tell, patience with it is shorter than the caller's time."""
    topology = Topology(7, shards=2, replicas=2)
    (lease,) = leases(topology, 0, 1)
    silent = {0: NotNow.RECOVERING, 1: Silence.LATE}
    registry, asked = Answering(silent, {0: NotNow.RECOVERING, 1: "x"}, silent), question(lease, in_turn=False)
    assert verbs(registry, topology).ask_once(asked, LATER) is None
    assert verbs(registry, topology).ask_once(asked, LATER) == "x"
    with pytest.raises(RegistryUnavailableError):
        verbs(registry, topology).ask_once(asked, Deadline(0.0, 30.0))


def test_what_no_shard_has_is_no_registry() -> None:
    """None of the actors runs: for who asks there is no such registry, and for who releases nothing to do."""
    topology = Topology(7, shards=2, replicas=2)
    (lease,) = leases(topology, 0, 1)
    absent = {0: Silence.ABSENT, 1: Silence.ABSENT}
    with pytest.raises(NoRegistryError):
        verbs(Answering(absent), topology).ask_once(question(lease, in_turn=False), LATER)
    with pytest.raises(NoRegistryError):
        verbs(Answering(absent), topology).release_once([([lease], ME)], set(), LATER)


def test_an_end_counts_though_another_shard_says_that_the_registry_has_grown() -> None:
    """The old holder ends a lease; the new one has heard that the growth is over, and has the lease's end as news already."""
    growing = Topology(2, shards=3, before=1)
    (moved,) = leases(Topology(3, shards=3), 2)
    registry, ended = Answering({0: [1], 2: NotNow.STALE}, {2: [0]}), set[bytes]()
    assert verbs(registry, growing).release_once([([moved], ME)], ended, LATER) is None
    assert registry.forgotten == 1
    assert verbs(registry, Topology(3, shards=3)).release_once([([moved], ME)], ended, LATER)
    assert ended == {moved}


def test_a_release_is_repeated_only_where_nobody_took_it() -> None:
    """A dead shard hears it from another holder; where there is none, it is told when it is back, and nobody else again."""
    topology = Topology(7, shards=2, replicas=1)
    (here,), (there,) = leases(topology, 0), leases(topology, 1)
    registry, ended = Answering({0: [1], 1: Silence.DEAD}, {1: [1]}), set[bytes]()
    assert verbs(registry, topology).release_once([([here, there], ME)], ended, LATER)
    assert ended == {here, there}
    assert registry.pauses == 1
    replicated = Topology(7, shards=2, replicas=2)
    both = leases(replicated, 0, 1)
    registry = Answering({0: [1], 1: Silence.DEAD})
    assert verbs(registry, replicated).release_once([(both, ME)], set(), LATER)
    assert sent(registry.asked[0][0], ReleaseCall).rows == [(both, ME)]


def test_while_a_registry_grows_leases_end_at_their_old_and_their_new_holders() -> None:
    """`holders` are those that a lease is pinned at, `by_shard` names all that may have it."""
    growing = Topology(7, shards=3, replicas=1, before=1)
    (moved,) = leases(growing._replace(before=0), 2)
    asking = verbs(Answering(), growing)
    assert asking.holders(moved) == (2,)
    assert asking.by_shard([moved]) == {0: [moved], 2: [moved]}


def test_errors_of_pins_are_answers() -> None:
    """The first refusal of a holder is the answer, whatever the others hold."""
    topology = Topology(7, shards=2, replicas=2)
    (lease,) = leases(topology, 0, 1)
    refusal: SafeRefsError = RegistryFullError("full")
    assert verbs(Answering({0: [HELD], 1: [refusal]}), topology).pin_once([plan(lease)], LATER) == [refusal]
