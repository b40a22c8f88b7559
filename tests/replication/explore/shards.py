"""Both shards: the real `LeaseTable` and `Replica`, whose behaviour is looked up, call by call."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

from safe_refs.registry.replication import Parcel, Replica

from safe_refs.config import Limits
from safe_refs.errors import LeaseError, LeaseLostError, LeaseNotFoundError, RegistryFullError
from safe_refs.registry.leases import LeaseTable
from safe_refs.registry.records import Terms

from .model import LEASES, LOOK_UPS, ME, NAMES, TOPOLOGY, Interned


def _clock() -> float:
    return 0.0


class Shown(NamedTuple):
    """What can be seen of a shard: all of its state that its later behaviour depends on.

    Attributes:
        leases: for each, None, or ("live", uses so far, renewals, seconds left), or ("ended", how, uses).
        epoch: of its table.
        news: owed to the other, oldest first.
        recovering: it hasn't heard from the other.
        rest: what else its `Replica` remembers.
    """

    leases: tuple[Any, ...]
    epoch: bytes
    news: tuple[bytes, ...]
    recovering: bool
    rest: tuple[Any, ...]


class Shards:
    """Both shards' behaviour, looked up: state and call give the next state and the answer.

    States are numbers, of which 0 is a shard that is down. Calls are numbers too, of tuples: what, and its arguments.
    """

    def __init__(
        self, table: type[LeaseTable[str]], replica: type[Replica[str]], uses: tuple[int | None, ...], limits: Limits
    ) -> None:
        self._table_class = table
        self._replica_class = replica
        self._uses = uses
        self._limits = limits
        self._states: Interned[tuple[int, Shown | None]] = Interned()
        self._states((-1, None))  # DOWN
        self._frozen: list[bytes] = [b""]
        self._done: dict[tuple[int, int], tuple[int, Any]] = {}
        self.calls: Interned[tuple[Any, ...]] = Interned()
        self.shown: list[Shown] = [Shown((None, None), b"", (), True, ())]

    @property
    def count(self) -> int:
        """How many states of a single shard turned up, and how many different calls were carried out in them."""
        return len(self._done)

    def start(self, shard: int, epoch: int, restarted: bool) -> int:
        """A shard begins, empty."""
        table = self._table_class(
            registry="r",
            epoch=epoch_of(epoch),
            generation=epoch,
            clock=_clock,
            wall=_clock,
            limits=self._limits,
            alone=False,
        )
        return self._freeze(shard, table, self._replica_class(shard, TOPOLOGY, table, restarted, _clock))

    def do(self, state: int, call: int) -> tuple[int, Any]:
        """Carry out a call: the next state, and the answer."""
        key = (state, call)
        done = self._done.get(key)
        if done is None:
            table, replica = pickle.loads(self._frozen[state])
            answer = self._carry_out(table, replica, *self.calls.values[call])
            done = self._done[key] = self._freeze(replica.shard, table, replica), answer
        return done

    def _freeze(self, shard: int, table: LeaseTable[str], replica: Replica[str]) -> int:
        leases: list[Any] = []
        for lease in LEASES:
            if (copy := table.copy(lease)) is not None:
                leases.append(("live", copy.used, copy.renewals, copy.left_s))
            elif (ending := table.ending(lease)) is not None:
                leases.append(("ended", ending.how, frozenset(ending.uses)))
            else:
                leases.append(None)
        news = tuple(replica.owing().get(1 - shard, ()))
        recovering = bool(replica._to_hear)  # not what it says of itself, which is to be checked
        rest = (frozenset(replica._silent), frozenset(replica._unheard), frozenset(replica._asked))
        shown = Shown(tuple(leases), table.epoch, news, recovering, rest)
        number = self._states((shard, shown))
        if number == len(self._frozen):
            self._frozen.append(pickle.dumps((table, replica)))
            self.shown.append(shown)
        return number

    def _carry_out(self, table: LeaseTable[str], replica: Replica[str], what: str, *arguments: Any) -> Any:
        """One call, as the actor does it."""
        other = 1 - replica.shard
        if what in ("pin", "repair"):
            (number,) = arguments
            lease = LEASES[number]
            if what == "repair":
                replica.owe_one(lease, other)
                return "ok"
            try:
                table.pin(lease, [NAMES[number]], [b"owner"], Terms(uses=self._uses[number]), ME)
            except (LeaseError, RegistryFullError):
                return "refused"
            replica.owe_returned([lease])
            return "ok"
        if what == "release":
            (number,) = arguments
            table.release(LEASES[number], ME)
            replica.owe([LEASES[number]])
            return "ok"
        if what in LOOK_UPS:
            number, epoch, use = arguments
            lease = LEASES[number]
            try:
                if what == "renew":
                    ttl, renewals = use
                    renewals = table.renew(lease, epoch_of(epoch), epoch, ttl, renewals)
                    replica.owe([lease])
                    return ("renewed", renewals)
                table.resolve(lease, epoch_of(epoch), epoch, slot=None, take=what == "take", origin=ME, use=use)
            except LeaseNotFoundError:
                return "recovering" if replica.to_hear else "not found"
            except LeaseLostError:
                return "recovering" if replica.to_hear else "lost"
            except LeaseError:
                return "yours" if table.ended_by(lease, use) else "ended"
            if what != "resolve":
                replica.owe([lease])
            return "items"
        if what == "send news":
            taken = replica.take_news(other, 10)
            return self.calls(("receive", _Packed(replica.parcel(taken)), table.generation)), tuple(taken)
        if what == "give back":
            replica.give_back(other, arguments[0])
            return None
        if what == "receive":
            packed, epoch = arguments
            replica.receive(packed.parcel)
            if epoch > table.generation:
                table.begin_anew(epoch_of(epoch), epoch)
            return None
        if what == "tell":
            parcel, complete = replica.parcel(replica.shared_with(other)), replica.knows_of(other)
            replica.told(other)
            return self.calls(("hear", _Packed(parcel), complete))
        if what == "hear":
            packed, complete = arguments
            replica.receive(packed.parcel)
            replica.hear(other, complete)
            return None if replica.to_hear else replica.settle()
        if what == "give up":
            return replica.settle()
        if what == "new epoch":
            table.begin_anew(epoch_of(arguments[0]), arguments[0])
            return None
        raise ValueError(what)


class _Packed:
    """A parcel as a value that can be compared and hashed."""

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel
        endings = tuple(ending._replace(uses=tuple(sorted(ending.uses))) for ending in parcel.endings)
        self._key = (tuple(parcel.copies), endings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Packed) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        live = [NAMES[LEASES.index(copy.lease)] for copy in self.parcel.copies]
        ended = [NAMES[LEASES.index(ending.lease)] for ending in self.parcel.endings]
        return f"(live: {''.join(live) or '-'}, ended: {''.join(ended) or '-'})"


def epoch_of(number: int) -> bytes:
    return number.to_bytes(8, "big")
