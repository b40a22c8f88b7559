"""A Ray Client's job has a runtime environment: the registry that it starts has nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import run_python


@pytest.mark.long
def test_a_registry_that_a_client_starts_has_nothing_of_its_job(tmp_path: Path) -> None:
    """No `working_dir` and no variables, though the client's server starts all actors as the client's job is."""
    code = """
import json, os, socket, subprocess, sys
import ray
from tests.support import room
from tests.support.clients import answers
from tests.support.cluster import LOCAL_RAY
from tests.support.waiting import wait_until

folder = sys.argv[1]
ray.init(**LOCAL_RAY)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
agent = f"http://127.0.0.1:{ray._private.worker._global_node.runtime_env_agent_port}"
command = [sys.executable, "-m", "ray.util.client.server", "--mode", "proxy", "--host", "127.0.0.1", "--port", str(port)]
command += ["--address", ray.get_runtime_context().gcs_address, "--runtime-env-agent-address", agent]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
server = subprocess.Popen(command, **quiet, env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"})
try:
    wait_until(lambda: answers(port), 60)
    program = '''
import os, sys
import ray, safe_refs
port, folder = sys.argv[1:]
ray.init("ray://127.0.0.1:" + port, runtime_env={"working_dir": folder, "env_vars": {"MARK": "the job's"}})
payload = safe_refs.dumps(ray.put([1]))
assert ray.get(safe_refs.loads(payload)) == [1]
print(ray.get(ray.remote(num_cpus=0)(os.getenv).remote("MARK")))
'''
    done = subprocess.run([sys.executable, "-c", program, str(port), folder], capture_output=True, text=True, timeout=80)
    assert done.returncode == 0, done.stderr
finally:
    server.terminate()
    server.wait(30)
pid = room.pids()["registry:default"]
print(json.dumps([done.stdout.strip(), room.environment(pid)["MARK"], "runtime_resources" in room.folder(pid)]))
"""
    assert run_python(code, str(tmp_path), timeout=170) == ["the job's", "", False]
