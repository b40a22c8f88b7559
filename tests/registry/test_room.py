"""The registry takes no room: it starts on a full cluster, leaves nodes idle, and has nothing of the job that first used it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import NODES, run_python

# What a program begins with that has a Ray of its own.
LOCAL = """
import json, os, sys, time
import ray, safe_refs
from safe_refs import errors
from tests.support import room
from tests.support.cluster import LOCAL_RAY, as_actor
from tests.support.anchoring import anchored
from tests.support.waiting import wait_until
"""

# Ray issue 2588 (an actor that needs nothing can't start where others have taken all) and issue 5114 (memory as a resource).
FULL = (
    LOCAL
    + """
ray.init(**{**LOCAL_RAY, "num_cpus": 2, "_memory": 400 * 2**20})

class Large:
    def ready(self):
        return True

large = ray.remote(Large).options(num_cpus=2, memory=int(ray.cluster_resources()["memory"])).remote()
assert ray.get(large.ready.remote(), timeout=60)
def full():
    left = ray.available_resources()
    return left.get("memory", 0.0) < 1 and left.get("CPU", 0.0) == 0
wait_until(full)
"""
)


@pytest.mark.long
def test_it_starts_where_all_cpus_and_all_memory_are_reserved() -> None:
    """Somebody pins for the first time when others have reserved all that the nodes have: it works at once, and takes none of it."""
    code = """
before = ray.available_resources()
payload = safe_refs.dumps({"rows": ray.put([1])}, ttl=60)
assert ray.get(safe_refs.loads(payload, take=True)["rows"], timeout=30) == [1]
print(json.dumps([full(), {name for name in ray.available_resources() if name not in before} == set()]))
"""
    assert run_python(FULL + code) == [True, True]


@pytest.mark.long
def test_relays_copies_and_replicas_start_there_too() -> None:
    """On the same cluster a borrower's lease is anchored, a lease becomes durable, and a registry with replicas starts."""
    code = """
class Borrower:
    def pin(self, refs):
        return safe_refs.dumps(refs[0], ttl=600)

ref = ray.put([1])
payload = ray.get(as_actor(Borrower).remote().pin.remote([ref]), timeout=60)
wait_until(anchored, 60)
relays = [name for name in room.pids() if name.startswith("relay:")]
durable = safe_refs.dumps([ray.put([2]), ray.put([ray.put(3)])], durable=True)
replicated = safe_refs.init("replicated", shards=2, replicas=2).replicas
print(json.dumps([len(relays) >= 2, safe_refs.leases(registry="default")[-1].durable, replicated, full()]))
"""
    assert run_python(FULL + code, timeout=180) == [True, True, 2, True]


@pytest.mark.long
# Ray issue 61350 and PR 61473, dagster-ray PR 304: setup hooks for what each worker is to do first.
def test_a_setup_hook_may_call_init(tmp_path: Path) -> None:
    """`init` in a worker's setup hook sets that worker's defaults, in tasks and actors; `dumps` works there and in the driver."""
    code = """
def hook():
    import os, safe_refs
    assert safe_refs.init(ttl=600, timeout=20).generation == 0
    open(os.path.join(os.environ["SEEN"], str(os.getpid())), "w").close()

os.environ["SEEN"] = sys.argv[1]
ray.init(**LOCAL_RAY, runtime_env={"worker_process_setup_hook": hook, "env_vars": {"SEEN": sys.argv[1]}})
payload = safe_refs.dumps({"rows": ray.put([1])}, ttl=60)
assert ray.get(safe_refs.loads(payload, take=True)["rows"], timeout=30) == [1]

@ray.remote(num_cpus=0, max_retries=0)
def make():
    return safe_refs.dumps({"rows": ray.put([2])}), os.getpid()

class Maker:
    def make(self):
        return safe_refs.dumps({"rows": ray.put([2])}), os.getpid()

theirs = ray.get([make.remote(), as_actor(Maker).remote().make.remote()], timeout=60)
ran = {int(name) for name in os.listdir(sys.argv[1])}
print(json.dumps([
    [safe_refs.inspect(payload).terms["ttl"] for payload, _ in theirs],
    all(pid in ran for _, pid in theirs),
    [name for name, pid in room.pids().items() if pid in ran],
]))
"""
    assert run_python(LOCAL + code, str(tmp_path)) == [[600, 600], True, []]


@pytest.mark.long
def test_a_setup_hook_that_is_named_may_be_the_first_to_call_safe_refs(tmp_path: Path) -> None:
    """The hook is given as `module.function`, and calls `init` before there is a registry; anything else is refused by name there."""
    code = """
with open(os.path.join(sys.argv[1], "prepare.py"), "w") as module:
    module.write('''
import ray, safe_refs
refused = ""
def first():
    global refused
    safe_refs.init(ttl=300, shards=2)
    try:
        safe_refs.stats()
    except safe_refs.RegistryUnavailableError as error:
        refused = str(error)
''')
ray.init(**LOCAL_RAY, runtime_env={"worker_process_setup_hook": "prepare.first", "env_vars": {"PYTHONPATH": os.pathsep.join(
    [sys.argv[1], os.environ["PYTHONPATH"]])}})

@ray.remote(num_cpus=0, max_retries=0)
def make():
    import prepare
    return safe_refs.dumps(ray.put([2])), prepare.refused, safe_refs.stats().shards

payload, refused, shards = ray.get(make.remote(), timeout=60)
print(json.dumps([safe_refs.inspect(payload).terms["ttl"], "setup hook" in refused, shards]))
"""
    assert run_python(LOCAL + code, str(tmp_path)) == [300, True, 2]


@pytest.mark.long
def test_its_processes_have_nothing_of_the_job_that_first_used_it(tmp_path: Path) -> None:
    """No `working_dir`, `py_modules`, `env_vars`, setup hook or namespace: in the registry, its relays and its copy owner."""
    code = """
work, packages, seen = (os.path.join(sys.argv[1], name) for name in ("work", "packages", "seen"))
for name in (work, packages, seen):
    os.makedirs(name)
open(os.path.join(work, "inputs.txt"), "w").close()
open(os.path.join(packages, "__init__.py"), "w").close()
def hook():
    import os
    open(os.path.join(os.environ["JOBS_SEEN"], str(os.getpid())), "w").close()

os.environ["KEPT"] = "the node's"  # which is what Ray's own processes get
ray.init(**LOCAL_RAY, namespace="jobs", runtime_env={
    "working_dir": work, "py_modules": [packages], "worker_process_setup_hook": hook,
    "env_vars": {"JOBS_SEEN": seen, "KEPT": "the job's", "lower_case": "x", "SAFE_REFS_TIMEOUT": "7"},
})
durable = safe_refs.dumps(ray.put([ray.put(3)]), durable=True)
ref = safe_refs.loads(durable)
wait_until(lambda: sum(name.startswith("relay:") for name in room.pids()) >= 2, 30)
@ray.remote(num_cpus=0)
def control():
    return os.getpid(), os.environ["KEPT"]
pid, kept = ray.get(control.remote(), timeout=60)
hooked = {int(name) for name in os.listdir(seen)}
assert (pid in hooked, kept, "runtime_resources" in room.folder(pid)) == (True, "the job's", True)
ours = room.pids()
found = {}
for name, pid in ours.items():
    variables = room.environment(pid)
    found[name] = [
        {name: variables.get(name) for name in ("JOBS_SEEN", "KEPT", "lower_case", "SAFE_REFS_TIMEOUT")},
        [value for value in variables.values() if "runtime_resources" in value or "ray_pkg" in value],
        "runtime_resources" in room.folder(pid), pid in hooked,
    ]
print(json.dumps([sorted(found)[-1], len(found) >= 4, [each for each in found.values()]]))
"""
    last, enough, found = run_python(LOCAL + code, str(tmp_path), timeout=180)
    assert (last, enough) == ("relay:1", True)
    for variables, paths, in_the_jobs_folder, ran_the_hook in found:
        assert variables == {"JOBS_SEEN": "", "KEPT": "the node's", "lower_case": "", "SAFE_REFS_TIMEOUT": ""}
        assert (paths, in_the_jobs_folder, ran_the_hook) == ([], False, False)


@pytest.mark.long
def test_a_job_that_brings_safe_refs_along_has_a_registry(tmp_path: Path) -> None:
    """Where only the job's own packages have safe_refs, and the nodes don't, the registry has those packages, and nothing else."""
    code = '''
import glob, shutil, subprocess, sysconfig
folder, port = sys.argv[1], "0"
# A Python without safe_refs, but with all else: what is installed here, less the file that leads to safe_refs.
subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder + "/venv"], check=True)
site = glob.glob(folder + "/venv/lib/python3*/site-packages")[0]
with open(site + "/all.pth", "w") as listed:
    listed.write(sysconfig.get_paths()["purelib"])
python = folder + "/venv/bin/python"
bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
assert subprocess.run([python, "-c", "import ray, safe_refs"], env=bare, cwd=folder, stderr=subprocess.PIPE).returncode
package = shutil.copytree(os.path.dirname(safe_refs.__file__), folder + "/packages/safe_refs")
start = """
import sys, ray
ray.init(**eval(sys.argv[1]))
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
node = subprocess.Popen([python, "-c", start, repr(LOCAL_RAY)], env=bare, cwd=folder, **pipes)
address = node.stdout.readline().strip()
os.chdir(folder)
ray.init(address=address, log_to_driver=False, runtime_env={"py_modules": [package], "env_vars": {"JOBS": "the job's"}})
payload = safe_refs.dumps({"rows": ray.put([1])}, ttl=60)
assert ray.get(safe_refs.loads(payload, take=True)["rows"], timeout=30) == [1]
[pid] = [pid for name, pid in room.pids().items() if name == "registry:default"]
found = room.environment(pid)
print(json.dumps([found["JOBS"], "py_modules_files" in found["PYTHONPATH"]]))
ray.shutdown()
node.stdin.close()
node.wait(30)
'''
    assert run_python(LOCAL + code, str(tmp_path), timeout=180) == ["", True]


@pytest.mark.long
def test_nodes_are_idle_for_the_autoscaler() -> None:
    """A node on which no lease needs anything is idle: the registry and its two relays are on the head node.

    A lease that a process on another node made, and that another process there has loaded, does not change that.
    """
    code = """
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from safe_refs.anchoring import relays
from tests.support import room
from tests.support.anchoring import anchored
from tests.support.waiting import wait_until

there = NodeAffinitySchedulingStrategy(others[0].node_id, soft=False)

class Worker:
    def make(self):
        self.ref = ray.put([1])
        return safe_refs.dumps(self.ref)
    def load(self, payload):
        return ray.get(safe_refs.loads(payload))

maker, reader = (ray.remote(num_cpus=0)(Worker).options(scheduling_strategy=there).remote() for _ in range(2))
payload = ray.get(maker.make.remote(), timeout=60)
read = ray.get(reader.load.remote(payload), timeout=60)
lasting = safe_refs.dumps(ray.put([2]))
wait_until(anchored, 60)
busy = room.idle_ms()
ray.kill(maker), ray.kill(reader)
def idle():
    found = room.idle_ms()
    return all(found[each.node_id] > 3000 for each in others)
wait_until(idle, 40)
wait_until(lambda: set(room.pids()) == {"registry:default", "relay:0", "relay:1"}, relays.STAYS_S + 20)
print(json.dumps([read, [busy[each.node_id] > 0 for each in others], ray.get(safe_refs.loads(lasting))]))
ray.shutdown()
cluster.shutdown()
"""
    assert run_python(NODES + code, timeout=180) == [[1], [False, True], [2]]
