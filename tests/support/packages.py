"""Nodes whose workers can't import a package, on this machine where all is installed."""

from __future__ import annotations

from pathlib import Path

# Python runs a module of this name when it starts, if it finds one in its path. The package in `LACKS` can't be imported then, unless
# the job has brought packages along, which Ray puts into a folder of that name.
_REFUSES = """
import os, sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        brought = any("runtime_resources" in folder for folder in sys.path)
        if name.partition(".")[0] == os.environ.get("LACKS") and not brought:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuses())
"""

# What a program begins with that gets the folder of `lacking` as its first argument. Nodes that are started with `LACKS` in their
# environment lack the package named there; the program itself has all.
PRELUDE = """
import asyncio, json, os, sys, time
os.environ["PYTHONPATH"] = os.pathsep.join([sys.argv[1], os.environ["PYTHONPATH"]])
import ray, safe_refs
from safe_refs import aio
from ray.cluster_utils import Cluster
from tests.support.anchoring import anchored
from tests.support.cluster import LOCAL_RAY
from tests.support.waiting import wait_until

def told(call):
    begun = time.monotonic()
    try:
        call()
    except safe_refs.RegistryUnavailableError as error:
        return [str(error), time.monotonic() - begun]
    return ["nothing", 0.0]
"""


def lacking(folder: Path) -> str:
    """Make a folder for the `PYTHONPATH` of nodes that may lack packages."""
    (folder / "sitecustomize.py").write_text(_REFUSES)
    return str(folder)
