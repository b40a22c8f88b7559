"""Run cloudpickle's own tests against safe_refs, from a checkout of its repository: `make cloudpickle-suite CHECKOUT=…`.

PyPI's archive of cloudpickle comes without its tests, so that they can't be a part of ours. What fails with cloudpickle itself, on
the same machine, may fail with safe_refs, and nothing else: once with PyPI's copy under it, and once in processes that have Ray.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# What each process of the suite does first: whoever asks cloudpickle to pickle asks safe_refs.
_SHIM = """
import os
if os.environ.get("CLOUDPICKLE_IS") in ("safe_refs", "safe_refs with Ray"):
    import cloudpickle, safe_refs
    if os.environ["CLOUDPICKLE_IS"] == "safe_refs with Ray":
        import ray
    def dumps(obj, protocol=None, buffer_callback=None):
        return safe_refs.dumps(obj, protocol, buffer_callback=buffer_callback)
    def dump(obj, file, protocol=None, buffer_callback=None):
        return safe_refs.dump(obj, file, protocol, buffer_callback=buffer_callback)
    for each in (cloudpickle, cloudpickle.cloudpickle):
        each.dumps, each.dump, each.loads, each.load = dumps, dump, safe_refs.loads, safe_refs.load
"""


def failures(checkout: Path, what: str) -> tuple[set[str], str]:
    """The tests that fail with `what` in the place of cloudpickle, and pytest's last line."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(_SHIM)
        environment = os.environ | {"CLOUDPICKLE_IS": what, "PYTHONPATH": f"{folder}:{checkout}"}
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests"]
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
    last = done.stdout.strip().splitlines()[-1]
    if not re.search(r"\d+ passed", last):
        raise SystemExit(f"the tests did not run:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return set(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)), last


def main(checkout: Path) -> int:
    """Print what fails where; 1 if anything fails with safe_refs alone."""
    theirs, last = failures(checkout, "cloudpickle")
    print(f"cloudpickle: {last}")
    found: set[str] = set()
    for what in ("safe_refs", "safe_refs with Ray"):
        ours, last = failures(checkout, what)
        print(f"{what}: {last}")
        found |= ours - theirs
    print("fails with safe_refs alone:", *(sorted(found) or ["nothing"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
