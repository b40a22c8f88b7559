"""A Ray Client whose server can't import safe_refs hears it from its first call, and from Ray nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.packages import PRELUDE, lacking
from tests.support.processes import run_python


@pytest.mark.long
def test_a_client_hears_that_its_server_lacks_safe_refs(tmp_path: Path) -> None:
    """At once, and by name: not as the client's own `ModuleNotFoundError`, as the client has it."""
    code = """
import socket, subprocess
from tests.support import clients

os.environ["LACKS"] = "safe_refs"
ray.init(**LOCAL_RAY)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.executable, "-m", "ray.util.client.server", "--mode", "proxy", "--host", "127.0.0.1", "--port", str(port)]
command += ["--address", ray.get_runtime_context().gcs_address, "--runtime-env-agent-address="]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
server = subprocess.Popen(command, **quiet, env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"})
try:
    wait_until(lambda: clients.answers(port), 60)
    os.environ["LACKS"] = ""
    program = clients.start(port, '''
begun = time.monotonic()
try:
    safe_refs.dumps(ray.put(1))
except safe_refs.RegistryUnavailableError as error:
    print(json.dumps([str(error), time.monotonic() - begun]))
''')
    out, err = program.communicate(timeout=80)
    assert program.returncode == 0, err
finally:
    server.terminate()
    server.wait(30)
print(out.strip())
"""
    text, took_s = run_python(PRELUDE + code, lacking(tmp_path), timeout=170)
    assert text.startswith("safe_refs is not installed on the node of this Ray Client's server")
    assert took_s < 8
