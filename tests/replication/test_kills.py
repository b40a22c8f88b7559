"""With two replicas, kills of either shard at any moment cost nothing: rounds of them, and the death of a node."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import kills
from tests.support.environment import ROOT
from tests.support.processes import NODES, run_python


@pytest.mark.parametrize(("rounds", "registries"), [(1, 1), pytest.param(12, 4, marks=pytest.mark.long)])
def test_kills_of_either_replica_at_any_moment_cost_nothing(
    cluster: str, monkeypatch: pytest.MonkeyPatch, rounds: int, registries: int
) -> None:
    """Every call succeeds, every payload opens, every live reference reads, nothing released comes back; only leases hold objects."""
    tally = kills.run(rounds=rounds, registries=registries, seed=1, let_go=True)
    assert (tally.failed, tally.dead, tally.risen) == ([], [], [])
    assert tally.rounds == rounds
    assert tally.released == rounds * kills.MADE
    assert tally.loaded >= 2 * rounds * kills.MADE
    assert tally.read >= 2 * rounds * kills.MADE
    assert max(tally.stalls_s) < 15


@pytest.mark.slow
def test_a_thousand_kills_cost_nothing() -> None:
    """The same, a thousand times."""
    command = [sys.executable, "-m", "tests.support.kills", "--rounds", "1000", "--seed", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


NODE_DIES = """
from tests.support.cluster import as_actor
from tests.support.kills import Reader
from tests.support.shards import is_whole
from tests.support.waiting import wait_until

safe_refs.init(shards=2, replicas=2)
spread = [living_nodes().index(place("default", shard)[0]) for shard in (0, 1)]
refs = [ray.put((number, bytes(110_000))) for number in range(20)]
payloads = {number: safe_refs.dumps(ref) for number, ref in enumerate(refs)}
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
on_head = NodeAffinitySchedulingStrategy(living_nodes()[0], soft=False)
reader = as_actor(Reader).options(scheduling_strategy=on_head).remote()
assert ray.get(reader.load.remote(payloads), timeout=60)[0] == []
second = next(node for node in others if node.node_id == place("default", 1)[0])
begun = time.monotonic()
cluster.remove_node(second, allow_graceful=False)
released = safe_refs.release([payloads.pop(number) for number in range(5)])
failed, stall = ray.get(reader.load.remote(payloads), timeout=120)
wait_until(lambda: is_whole("default"), 60)
recovered = time.monotonic() - begun
again = [len(safe_refs.loads(payloads[number], resolve=True).hex()) > 0 for number in payloads]
_, dead = ray.get(reader.read.remote(), timeout=120)
moved = living_nodes().index(place("default", 1)[0])
risen = safe_refs.stats().live_leases - len(payloads)
ray.shutdown()
cluster.shutdown()
print(json.dumps([spread, released, failed, dead, len(again), risen, stall, recovered, moved]))
"""


@pytest.mark.long
def test_the_death_of_a_node_with_one_replica_costs_nothing() -> None:
    """Payloads go on opening while Ray finds out; the shard starts on another node and knows all; live references read."""
    spread, released, failed, dead, again, risen, stall_s, recovered_s, _ = run_python(NODES + NODE_DIES, timeout=150)
    assert (spread, released, failed, dead, again, risen) == ([0, 1], 5, [], [], 15, 0)
    assert stall_s < 20
    assert recovered_s < 40
