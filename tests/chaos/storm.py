"""A storm from its beginning to its end: cluster, registry, jobs, stories, killer; then quiet, and a look at what is left."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import safe_refs
from safe_refs._ray import store

from . import faults, squeeze, vandal
from .cluster import STORE_BYTES, Cluster
from .figures import Parameters, Report
from .killer import Killer
from .ledger import Ledger
from .orders import LABEL
from .plan import draw_plan
from .rules import Rules, Verdict
from .shards import Shards
from .solo import Solo
from .stage import Stage
from .stories import FILL_SIZE, Stories, fill
from .troupe import Begin, Job, Troupe

_HELD_S = 25.0  # what others hold while a shutdown is refused
_FILLED = 1.4  # times a node's store
_STORY_ENDS_S = 200.0
_ENDS_S = 60.0  # when all is quiet, leases and bytes may take so long to go: what nobody knows of has its ttl
_LIST_EVERY_S = 10.0
# Ray keeps a mark of one byte for an object that somebody looked for after its owner's death. Any object of the storm's is larger.
_MARKS_BYTES = 1_500

Say = Callable[[str], None]


def storm(parameters: Parameters, say: Say = lambda _: None) -> Report:
    """Let it rage; its report.

    Raises:
        RuntimeError: the storm itself failed.
    """
    report = Report(parameters)
    nodes = Cluster(parameters.nodes)
    try:
        safe_refs.init(shards=parameters.shards, replicas=parameters.replicas)
        ledger = Ledger()
        rules = Rules(ledger, replicas=parameters.replicas, anchored=parameters.anchored)
        begin, visitors = _begin(parameters, report, nodes, ledger)
        troupe = Troupe(begin, ledger)
        garbage = vandal.Job(nodes.address, parameters.seed)
        say("cluster, registry and jobs are there")
        stage = Stage(troupe, ledger, rules, report)
        _rage(parameters, report, nodes, stage, visitors, say)
        _end_garbage(report, garbage)
        say("quiet: waiting for what is left to go")
        troupe.end("client")  # its server keeps the functions and classes that it has used, as objects
        _check_left(report, nodes, rules, "when all payloads had ended")
        troupe.end()
        _check_left(report, nodes, rules, "when all players had gone")
        report.payloads = len(ledger.payloads)
        report.spilled_bytes = store.store_usage().spilled_bytes
        safe_refs.shutdown(force=True, timeout=30)
    finally:
        nodes.close()
    return report


def _begin(parameters: Parameters, report: Report, nodes: Cluster, ledger: Ledger) -> tuple[list[Begin], Begin]:
    """What begins each job; and one that comes for a while, to where memory is about to be short."""

    def surprise(who: str, pid: int) -> None:
        words = nodes.last_words(pid)
        report.note(Verdict("wrong", f"{who} ({pid}) died though nobody had killed it\n{words}"), "a death")

    def job(name: str) -> Job:
        return Job(name, nodes.address, parameters.players, ledger, surprise)

    def visitors(name: str) -> Job:
        return Job(name, nodes.address, 2, ledger, surprise, squeeze.RESOURCE)

    def driver(name: str) -> Solo:
        return Solo(name, "driver", nodes.address, ledger, surprise)

    def client(name: str) -> Solo:
        return Solo(name, "client", nodes.clients_address, ledger, surprise)

    return [*[job] * parameters.jobs, driver, client], visitors


def _rage(parameters: Parameters, report: Report, nodes: Cluster, stage: Stage, visitors: Begin, say: Say) -> None:
    over = threading.Event()
    stories = [Stories(number, stage, report, over) for number in range(parameters.stories)]
    source = random.Random(f"fill {parameters.seed}")
    plan = draw_plan(parameters.seed, parameters.seconds)
    objects = int(_FILLED * STORE_BYTES / FILL_SIZE)

    def while_others_hold(call: Callable[[], str]) -> str:
        with stage.seat(source) as seat:  # nobody kills it meanwhile
            payload = stage.make(seat, [2_000], ttl=_HELD_S)
            return call() if payload is not None else ""

    killer = Killer(
        plan, nodes, stage.troupe, Shards(parameters.shards), stage.ledger, report, lambda: fill(stage, source, objects),
        while_others_hold, visitors,
    )  # fmt: skip
    watch = threading.Thread(target=_watch, args=(report, stage, over, say), name="watch", daemon=True)
    for thread in (*stories, watch):
        thread.start()
    killer.run()
    over.set()
    for thread in (*stories, watch):
        thread.join(_STORY_ENDS_S)
        if thread.is_alive():
            report.note(Verdict("hung", f"no end within {_STORY_ENDS_S:g} s"), thread.name)
    for each in stories:
        if each.error is not None:
            raise RuntimeError("the storm itself failed") from each.error


def _watch(report: Report, stage: Stage, over: threading.Event, say: Say) -> None:
    """Plants what is to be planted, looks at what is listed as live, and says how it goes."""
    source = random.Random(f"plant {report.parameters.seed}")
    begun, planted = time.monotonic(), list(report.parameters.plant)
    while not over.wait(_LIST_EVERY_S if not planted else 1.0) or planted:
        if planted:
            faults.plant(planted.pop(0), stage, source)
        _check_listing(report, stage.rules)
        for trace in report.news():
            say(trace)
        figures = ", ".join(f"{name} {count}" for name, count in report.figures.items())
        told, done = sum(report.stories.values()), sum(report.actions.values())
        say(f"{time.monotonic() - begun:.0f} s: {told} stories, {done} failures; {figures}")


def _check_listing(report: Report, rules: Rules) -> None:
    """What is listed as live must not have ended. A lease may end while it is being listed, so the time is that of the question."""
    asked = time.monotonic()
    try:
        live = _live()
    except safe_refs.RegistryUnavailableError:
        return
    for number, why in rules.leaked(live, asked):
        payload = rules.ledger.payloads.get(number, f"payload {number}")
        report.note(Verdict("leaked", f"is listed as live although {why}"), f"{payload} at {asked:.2f}")


def _check_left(report: Report, nodes: Cluster, rules: Rules, when: str) -> None:
    """Nothing must be left: neither a lease nor a byte, but for what Ray itself keeps."""
    deadline = time.monotonic() + _ENDS_S
    while (live := _live()) and time.monotonic() < deadline:
        time.sleep(0.2)
    for number in live:
        report.note(Verdict("leaked", f"is live {when}"), str(rules.ledger.payloads.get(number, f"payload {number}")))
    while (left := store.store_usage().primary_bytes + nodes.spilled_bytes()) > _MARKS_BYTES:
        if time.monotonic() > deadline:
            report.note(Verdict("leaked", f"{left} bytes {when}"), "the stores")
            report.left = [*(f"spilled: {name}, {size}" for name, size in nodes.spilled().items()), *_who_holds()]
            break
        time.sleep(0.2)
    report.left_bytes = max(report.left_bytes, left)
    while (actors := _echoes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    if actors:
        report.note(Verdict("leaked", f"{actors} live {when}"), "actors")


def _echoes() -> int:
    """How many of the actors live that were passed on."""
    from ray._private import state

    rows: Any = state.actors(actor_state_name="ALIVE")
    return sum(row["ActorClassName"] == "Echo" for row in rows.values())


def _who_holds() -> list[str]:
    """Ray's own list of references, by process, for whoever has to find out why something was left."""
    from ray._private import internal_api

    return str(internal_api.memory_summary()).splitlines()  # type: ignore[no-untyped-call]


def _live() -> list[int]:
    """Numbers of the payloads that have live leases."""
    labels = [lease.label or "" for lease in safe_refs.leases(limit=None, sizes=False, timeout=30)]
    return [int(label.removeprefix(LABEL)) for label in labels if _is_ours(label)]


def _is_ours(label: str) -> bool:
    """Whether a lease is a story's; garbage may have pinned something, in a call that was right by chance."""
    return label.startswith(LABEL) and label.removeprefix(LABEL).isdecimal()


def _end_garbage(report: Report, job: vandal.Job) -> None:
    """End the job that sends garbage, and what it has pinned."""
    seen, odd = job.end()
    for kind, count in seen.items():
        report.garbage[kind] += count
    for each in odd:
        report.note(Verdict("wrong", each), "garbage")
    rows = [lease for lease in safe_refs.leases(limit=None, sizes=False, timeout=30) if not _is_ours(lease.label or "")]
    safe_refs.release(rows)
