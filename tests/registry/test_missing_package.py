"""Nodes whose workers can't import safe_refs: what can start elsewhere does, and what can't says so at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import safe_refs
from safe_refs._ray import packages
from tests.support.packages import PRELUDE, lacking
from tests.support.processes import run_python

SOON_S = 8.0  # a worker has to start and to fail, on a busy machine; without that, callers waited for 30 s


@pytest.mark.long
def test_callers_hear_that_no_worker_has_it(tmp_path: Path) -> None:
    """A driver that has safe_refs in its own path only, as from a checkout, hears it from each call; nothing is tried in a loop."""
    code = """
os.environ["LACKS"] = "safe_refs"
ray.init(**LOCAL_RAY)
ref = ray.put(1)
texts = [
    told(lambda: safe_refs.dumps(ref)),
    told(lambda: safe_refs.pin(ref, wait=False)),
    told(lambda: safe_refs.init()),
    told(lambda: asyncio.run(aio.dumps(ref))),
    told(lambda: safe_refs.init("two", replicas=2)),
]
from pathlib import Path
logs = Path(ray._private.worker._global_node.get_logs_dir_path())
failed = sum("No module named 'safe_refs'" in each.read_text() for each in logs.glob("worker-*.err"))
print(json.dumps([texts, failed, ray.get_runtime_context().get_node_id()[:8]]))
"""
    texts, failed, node = run_python(PRELUDE + code, lacking(tmp_path))
    for text, took_s in texts:
        assert text.startswith(
            f"safe_refs is not installed on node {node} (127.0.0.1), in the environment of its workers"
        )
        assert "install it on every node" in text
        assert took_s < SOON_S
    assert texts[1][1] < 1  # it has just been tried
    assert failed <= 2


@pytest.mark.long
def test_a_job_may_bring_it_along(tmp_path: Path) -> None:
    """As the error says: then the registry starts with the job's packages."""
    code = """
os.environ["LACKS"] = "safe_refs"
ray.init(**LOCAL_RAY, runtime_env={"py_modules": [safe_refs]})
print(json.dumps(told(lambda: safe_refs.dumps(ray.put(1)))))
"""
    text, _ = run_python(PRELUDE + code, lacking(tmp_path))
    assert text == "nothing"


NODES = """
lacks = {"env_vars": {"LACKS": "safe_refs"}}
has = {"env_vars": {"LACKS": ""}}
def start(*nodes):
    global cluster
    args = [{"num_cpus": 1, "object_store_memory": 150_000_000, "resources": {f"n{n}": 1}, **each} for n, each in enumerate(nodes)]
    cluster = Cluster(initialize_head=True, head_node_args=args[0])
    for each in args[1:]:
        cluster.add_node(**each)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
"""


@pytest.mark.long
def test_a_registry_starts_where_it_is_installed(tmp_path: Path) -> None:
    """The head node lacks it: the shard, a borrower's relay and the copies' owner start on another, and copies are made there."""
    code = """
start(lacks, has)
class Borrower:
    def pin(self, refs):
        self.kept = refs
    def again(self):
        return safe_refs.dumps(self.kept[0], ttl=60)

begun = time.monotonic()
payload = safe_refs.dumps(ray.put([1]))
first_s = time.monotonic() - begun
borrower = ray.remote(resources={"n1": 0.1}, num_cpus=0)(Borrower).remote()
ref = ray.put([2])
ray.get(borrower.pin.remote([ref]))
theirs = ray.get(borrower.again.remote(), timeout=60)
wait_until(anchored, 20)
begun = time.monotonic()
large = ray.put(b"x" * 10_000_000)          # on the head node, where no task of ours can run
durable = safe_refs.dumps([large, ray.put([ray.put(3)])], durable=True)
durable_s = time.monotonic() - begun
print(json.dumps([
    ray.get(safe_refs.loads(payload)), ray.get(safe_refs.loads(theirs)), len(ray.get(safe_refs.loads(durable)[0])),
    first_s, durable_s]))
ray.shutdown()
cluster.shutdown()
"""
    *found, first_s, durable_s = run_python(PRELUDE + NODES + code, lacking(tmp_path), timeout=120)
    assert found == [[1], [2], 10_000_000]
    assert first_s < SOON_S
    assert durable_s < 2 * SOON_S


@pytest.mark.long
def test_shards_start_on_the_nodes_that_have_it(tmp_path: Path) -> None:
    """Of three nodes one lacks it: a registry of three shards runs on the other two."""
    code = """
start(has, lacks, has)
begun = time.monotonic()
shards = safe_refs.init("three", shards=3, replicas=2).shards
took_s = time.monotonic() - begun
payload = safe_refs.dumps(ray.put(1))
print(json.dumps([shards, ray.get(safe_refs.loads(payload)), took_s]))
ray.shutdown()
cluster.shutdown()
"""
    shards, value, took_s = run_python(PRELUDE + NODES + code, lacking(tmp_path), timeout=120)
    assert (shards, value) == (3, 1)
    assert took_s < SOON_S


def error_of(text: str) -> Exception:
    return Exception(f"The actor died because of an error raised in its creation task (ip=10.0.0.7):\n{text}")


def test_what_an_error_says_is_missing() -> None:
    """safe_refs, a package that it needs, or another version of it; a module of the user's is none of these."""
    assert packages.missing(error_of("ModuleNotFoundError: No module named 'safe_refs'")) == "safe_refs"
    assert packages.missing(error_of("ModuleNotFoundError: No module named 'msgpack'")) == "msgpack"
    other = "AttributeError: Can't get attribute 'SafeRefsRelay' on <module 'safe_refs.anchoring.relays' from '/x.py'>"
    assert packages.missing(error_of(other)) == "safe_refs.anchoring.relays"
    assert packages.missing(error_of("ModuleNotFoundError: No module named 'things'")) is None
    assert packages.missing(error_of("ValueError: nothing of the kind")) is None


@pytest.mark.long
def test_nodes_that_lack_it_are_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next node is taken; where all lack it, or three in a row did, an error says so, and a moment later they are tried again."""
    living = ["a", "b", "c", "d", "e"]
    now = 1000.0
    monkeypatch.setattr(packages, "_lacking", {})
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def mark(node: str) -> None:
        packages._lacking[node] = packages._Mark(now, f"missing on {node}")

    assert packages.choose(living, 6) == "b"
    mark("b")
    assert packages.choose(living, 6) == "c"
    with pytest.raises(safe_refs.RegistryUnavailableError, match="missing on b"):
        packages.choose(["b"], 0)
    mark("c")
    mark("d")
    with pytest.raises(safe_refs.RegistryUnavailableError, match="missing on d"):
        packages.choose(living, 1)
    assert packages.complaint() is not None
    now += 6
    assert packages.choose(living, 1) == "e"
    assert packages.choose(["b"], 0) == "b"
    assert packages.complaint() is None
    now += 60
    assert packages.choose(living, 1) == "b"
