"""Mistakes with the installation: parts that are missing, or too old, each in a process of its own that lacks them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any, NamedTuple


class Missing(MetaPathFinder):
    """Has packages look as if they weren't installed.

    Args:
        found: what would find them.
        names: of the packages.
    """

    def __init__(self, found: Any, names: Sequence[str]) -> None:
        self._found = found
        self._names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """What is found; nothing for what is missing."""
        is_missing = fullname.partition(".")[0] in self._names
        return None if is_missing else self._found.find_spec(fullname, path, target)


class Program(NamedTuple):
    """A mistake with the installation.

    Attributes:
        name: what it is.
        missing: packages that aren't installed.
        code: what the user runs; `PAYLOAD` is a payload.
        error: the name of the error's type that ends it.
        says: a pattern of what its text says.
    """

    name: str
    missing: tuple[str, ...]
    code: str
    error: str
    says: str


OLD_RAY = """
import ray, safe_refs
ray.init("local", num_cpus=1, object_store_memory=10**8, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="error")
ray.__version__ = "2.40.0"
"""
NO_RAY = r"Ray is not installed .*: pip install 'ray>=2.52'"
UNAVAILABLE = "safe_refs.errors.RegistryUnavailableError"
PROGRAMS = [
    Program(
        "msgpack is missing", ("msgpack",), "import safe_refs", "ModuleNotFoundError", r"No module named 'msgpack'"
    ),
    Program(
        *("cloudpickle is missing, and Ray", ("cloudpickle", "ray")),
        *("import safe_refs; safe_refs.dumps(lambda: 1)", "ModuleNotFoundError", r"No module named 'cloudpickle'"),
    ),
    Program("Ray is missing, loads", ("ray",), "import safe_refs; safe_refs.loads(PAYLOAD)", UNAVAILABLE, NO_RAY),
    Program("Ray is missing, release", ("ray",), "import safe_refs; safe_refs.release(PAYLOAD)", UNAVAILABLE, NO_RAY),
    Program("Ray is missing, init", ("ray",), "import safe_refs; safe_refs.init()", UNAVAILABLE, NO_RAY),
    Program("Ray is missing, put", ("ray",), "import safe_refs; safe_refs.put(1)", UNAVAILABLE, NO_RAY),
    Program("Ray is missing, plain pickle", ("ray",), "import pickle; pickle.loads(PAYLOAD)", UNAVAILABLE, NO_RAY),
    Program(
        *("safe_refs is missing where it is loaded", ("safe_refs",), "import pickle; pickle.loads(PAYLOAD)"),
        *("ModuleNotFoundError", r"No module named 'safe_refs'"),
    ),
    Program(
        *("Ray is too old", (), OLD_RAY + "safe_refs.loads(PAYLOAD)"),
        *(UNAVAILABLE, r"needs Ray 2.52 or newer, and this is Ray 2.40.0: pip install 'ray>=2.52'"),
    ),
    Program(
        *(
            "the demo without what it needs",
            ("rich",),
            "from safe_refs.cli import main; raise SystemExit(main(['demo']))",
        ),
        *("safe-refs", r"pip install .*safe-refs\[demo\]"),
    ),
    Program(
        *("the demo by Redis without its client", ("redis",)),
        "from safe_refs.cli import main; raise SystemExit(main(['demo', '--redis', 'redis://127.0.0.1:1']))",
        *("safe-refs", r"pip install .*safe-refs\[redis\]"),
    ),
    Program(
        *("the demo with a file that isn't there", ()),
        "from safe_refs.cli import main; raise SystemExit(main(['demo', '/not/there']))",
        *("safe-refs", r"/not/there"),
    ),
    Program(
        *("a command that isn't there", (), "from safe_refs.cli import main; main(['dmo'])"),
        *("safe-refs: error", r"invalid choice: '?dmo"),
    ),
]

# Before the user's code. Its arguments: the packages that are missing, and a payload's file.
BEGIN = """
import sys
from pathlib import Path
PAYLOAD = Path(sys.argv[2]).read_bytes()
from tests.support.wrong_installations import Missing
sys.meta_path[:] = [Missing(each, sys.argv[1].split(",")) for each in sys.meta_path]
"""
