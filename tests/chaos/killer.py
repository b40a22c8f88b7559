"""Carries out the plan. Each failure is written into the ledger before it is brought about.

What always holds: a shard, or a node with one, is killed only when the registry has recovered from the last time, no shard is being
paused, and fewer shards than there are replicas go at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from . import cluster, half_shutdown, squeeze
from .cluster import Cluster
from .figures import Report
from .ledger import NEVER, Ledger
from .plan import Action
from .rules import Verdict
from .shards import Place, Shards
from .solo import SoloSeat
from .troupe import Begin, Seat, Troupe

_RECOVERY_S = 90.0
_SETTLES_S = 1.0  # what clients had to tell a dead shard, the others tell it within this
_MOMENT_S = 0.001  # in a call, for each second of a pause
_SHARD_PAUSE_S = (
    1.5  # without anchoring, a load that gives up on a paused shard (after 2 s) would hang on the other one
)

T = TypeVar("T")


class Killer:
    """The killer. It works in the main thread, as Ray wants to set signal handlers when a node is added.

    Args:
        plan: what to do.
        nodes: the cluster.
        troupe: the players.
        shards: the registry.
        ledger: where to write it down.
        report: where to count it.
        fill: fills the store, and reads all of it back.
        while_others_hold: calls a function while another job has a lease.
        visitors: begins a job where memory is about to be short.
    """

    def __init__(
        self,
        plan: Sequence[Action],
        nodes: Cluster,
        troupe: Troupe,
        shards: Shards,
        ledger: Ledger,
        report: Report,
        fill: Callable[[], None],
        while_others_hold: Callable[[Callable[[], str]], str],
        visitors: Begin,
    ) -> None:
        self._plan = plan
        self._cluster = nodes
        self._troupe = troupe
        self._shards = shards
        self._ledger = ledger
        self._report = report
        self._fill = fill
        self._while_others_hold = while_others_hold
        self._visitors = visitors
        self._pauses: list[threading.Thread] = []
        self._shard_paused_until = 0.0
        self._places: dict[int, Place] = {}

    def run(self) -> None:
        """Do all of the plan that there is time for."""
        begun = time.monotonic()
        length = self._report.parameters.seconds
        does = {
            "worker": self._kill_worker,
            "player": self._kill_player,
            "job": self._kill_job,
            "shard": self._kill_shard,
            "node": self._kill_node,
            "pause player": self._pause_player,
            "pause shard": self._pause_shard,
            "fill": self._fill_store,
            "leave": self._have_one_leave,
            "stall": self._stall_control_service,
            "half shutdown": self._shut_down_half,
            "squeeze": self._squeeze,
        }
        for action in self._plan:
            time.sleep(max(0.0, begun + action.at_s - time.monotonic()))
            if time.monotonic() - begun > length:
                break
            self._ledger.history.tell(time.monotonic(), f"the killer begins: {action}")
            done = does[action.kind](action)
            self._ledger.history.tell(time.monotonic(), f"the killer ends: {action.kind}, {done}")
            self._report.count(self._report.actions, action.kind if done else f"{action.kind} (skipped)")
        time.sleep(max(0.0, begun + length - time.monotonic()))
        for pause in self._pauses:
            pause.join()

    def _fill_store(self, _: Action) -> bool:
        self._fill()
        return True

    def _kill_worker(self, action: Action) -> bool:
        victims = self._cluster.workers()
        if not victims:
            return False
        cluster.kill(_choose(action, victims))
        return True

    def _kill_player(self, action: Action) -> bool:
        seat = self._choose_seat(action)
        if seat is None or seat.process is None:
            return False
        self._ledger.dying(time.monotonic(), token=seat.process.token)
        if action.hard:
            cluster.kill(seat.pid)
        else:
            seat.kill_by_ray()
        return True

    def _kill_job(self, action: Action) -> bool:
        self._troupe.kill_job(_choose(action, self._troupe.jobs))
        return True

    def _kill_shard(self, action: Action) -> bool:
        before = self._when_well()
        shard = _choose(action, sorted(before))
        begun = time.monotonic()
        span = self._ledger.shard_dying(begun)
        self._ledger.history.tell(begun, f"shard {shard} dies, of {before}")
        if action.hard:
            cluster.kill(before[shard].pid)
        else:
            import ray

            ray.kill(self._shards.handle(shard), no_restart=False)
        self._await_recovery("shard", before, {shard}, begun)
        span.ended = time.monotonic()
        return True

    def _kill_node(self, action: Action) -> bool:
        before = self._when_well()
        replicas = self._report.parameters.replicas
        on = {node: {shard for shard, place in before.items() if place.node == node} for node in self._cluster.others}
        nodes = [node for node, shards in on.items() if len(shards) < max(replicas, 2)]
        if not nodes:
            return False
        node = _choose(action, nodes)
        begun = time.monotonic()
        span = self._ledger.shard_dying(begun) if on[node] else None
        self._ledger.dying(begun, node=node)
        self._cluster.remove(node, hard=action.hard)
        if span is not None:
            self._await_recovery("node, at once" if action.hard else "node, in order", before, on[node], begun)
            span.ended = time.monotonic()
        time.sleep(action.seconds)
        self._cluster.add()
        return True

    def _pause_player(self, action: Action) -> bool:
        seat = self._choose_seat(action)
        if seat is None:
            return False
        self._trouble(action.seconds)
        self._pause(seat.pid, action.seconds)
        return True

    def _stall_control_service(self, action: Action) -> bool:
        self._trouble(action.seconds)
        self._pause(self._cluster.control_service, action.seconds)
        return True

    def _shut_down_half(self, action: Action) -> bool:
        """In one of three ways: refused, as others have leases; a shard is silent; the caller is killed in the middle."""
        places = self._when_well()
        way = ("refused", "silent", "killed")[int(action.seconds * 100) % 3]
        trouble = self._ledger.trouble(time.monotonic())
        wrong = ""
        if way == "refused":
            wrong = self._while_others_hold(half_shutdown.refused)
        elif way == "silent":
            now = time.monotonic()
            self._ledger.shard_pausing(now, now + half_shutdown.LITTLE_S + 2 * _SETTLES_S)
            wrong = half_shutdown.with_a_silent_shard(places[_choose(action, sorted(places))].pid)
        else:
            wrong = half_shutdown.killed_half_way(self._cluster.address)
        trouble.ended = time.monotonic() + half_shutdown.TIME_S + _SETTLES_S
        if wrong:
            self._report.note(Verdict("wrong", wrong), f"a half-done shutdown, {way}")
        self._report.count(self._report.actions, f"half shutdown, {way}")
        return True

    def _squeeze(self, action: Action) -> bool:
        """A node comes, and with it a job; memory there is short, whoever is there may be killed; they are gone."""
        if not squeeze.is_possible():
            return False
        node = self._cluster.add(squeeze.environment(), **{squeeze.RESOURCE: 100})
        job = self._troupe.visit(self._visitors)
        time.sleep(action.seconds)  # for some stories
        shards = {shard for shard, place in self._shards.places().items() if place.node == node}
        begun = time.monotonic()
        span = self._ledger.shard_dying(begun) if shards else None
        self._ledger.squeezing(begun, node)
        is_done = squeeze.hog()
        self._ledger.dying(time.monotonic(), node=node)
        self._troupe.depart(job)
        self._cluster.remove(node, hard=action.hard)
        if span is not None:
            self._when_well()
            span.ended = time.monotonic()
        return is_done

    def _trouble(self, seconds: float) -> None:
        now = time.monotonic()
        self._ledger.trouble(now, now + seconds + _SETTLES_S)

    def _have_one_leave(self, action: Action) -> bool:
        """A process calls `ray.shutdown()` in the middle of what it does."""
        seat = self._choose_seat(action, lambda seat: isinstance(seat, SoloSeat))
        if not isinstance(seat, SoloSeat) or seat.process is None:
            return False
        self._ledger.leaving(seat.process.token, time.monotonic())
        self._in_background(self._leave, seat, action.seconds * _MOMENT_S)
        return True

    def _leave(self, seat: SoloSeat, moment_s: float) -> None:
        if not seat.leave(moment_s):
            self._report.note(Verdict("hung", "did not come back from ray.shutdown()"), seat.name)

    def _pause_shard(self, action: Action) -> bool:
        places = self._when_well()
        seconds = action.seconds if self._report.parameters.anchored else min(action.seconds, _SHARD_PAUSE_S)
        now = time.monotonic()
        self._shard_paused_until = now + seconds + _SETTLES_S
        self._ledger.shard_pausing(now, self._shard_paused_until)
        self._pause(places[_choose(action, sorted(places))].pid, seconds)
        return True

    def _pause(self, pid: int, seconds: float) -> None:
        self._in_background(cluster.pause, pid, seconds)

    def _in_background(self, does: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=does, args=args, daemon=True)
        thread.start()
        self._pauses.append(thread)

    def _choose_seat(self, action: Action, wanted: Callable[[Seat], bool] = lambda _: True) -> Seat | None:
        seats = [
            seat
            for seat in self._troupe.seats()
            if wanted(seat) and seat.pid and seat.process is not None and seat.process.dying_at == NEVER
        ]
        return _choose(action, seats) if seats else None

    def _when_well(self) -> dict[int, Place]:
        """Wait until the registry is whole; where its shards are."""
        deadline = time.monotonic() + _RECOVERY_S
        time.sleep(max(0.0, self._shard_paused_until - time.monotonic()))
        while True:
            places = self._shards.places()
            if len(places) == self._shards.count and self._shards.all_well():
                if self._places and places != self._places:
                    gone = [was.pid for shard, was in self._places.items() if places[shard] != was]
                    words = "\n".join(map(self._cluster.last_words, gone))
                    verdict = Verdict(
                        "wrong", f"died though nobody had killed it: {self._places}, now {places}\n{words}"
                    )
                    self._report.note(verdict, "a shard")
                self._places = places
                return places
            if time.monotonic() > deadline:
                raise RuntimeError(f"the registry is not whole {_RECOVERY_S:g} s after all was left alone: {places}")
            time.sleep(0.1)

    def _await_recovery(self, kind: str, before: dict[int, Place], killed: set[int], begun: float) -> None:
        if self._shards.recovered(before, killed, _RECOVERY_S):
            self._report.recovered(kind, time.monotonic() - begun)
            self._places = self._shards.places()
            time.sleep(_SETTLES_S)
        else:
            self._report.note(Verdict("hung", f"no recovery within {_RECOVERY_S:g} s"), f"kill of a {kind}")


def _choose(action: Action, choices: Sequence[T]) -> T:
    return choices[int(action.draw * len(choices))]
